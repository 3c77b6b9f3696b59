# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# bash completion of mapcheck(1). It needs nothing beyond bash.

# scripts/check-options compares these lists with --help.
_mapcheck_options='-e --expect --policy --auto --all --print-policy --junit --tap --openmetrics --watch --count -n --name --sysroot --backend -J --json
  --bytes --noheadings --color -o --output -V --version -h --help'
_mapcheck_columns='verdict name pid comm vma end size perms kind window pages ok findings backend'

# Processes below $1 that have user memory: a kernel thread or zombie has no command line. In a recorded system that
# may not be recorded.
_mapcheck_pids() {
  local directory first
  for directory in "$1"/proc/[0-9]*; do
    [[ -d $directory ]] || continue
    if [[ -z $1 ]]; then
      first=''
      { IFS= read -r -d '' -n 1 first <"$directory/cmdline"; } 2>/dev/null
      [[ $first ]] || continue
    fi
    printf '%s\n' "${directory##*/}"
  done
}

_mapcheck_comms() {
  local pid
  while read -r pid; do
    { cat "$1/proc/$pid/comm"; } 2>/dev/null
  done < <(_mapcheck_pids "$1") | sort -u
}

# Fills COMPREPLY with the lines of stdin that start with $1, quoted as the shell needs it.
_mapcheck_match() {
  local word quoted
  while IFS= read -r word; do
    [[ $word == "$1"* ]] || continue
    printf -v quoted '%q' "$word"
    quoted=${quoted//\\,/,}
    # Within quotes readline keeps the quote and takes the word as it is.
    [[ $2 ]] && quoted=$word
    COMPREPLY+=("$quoted")
  done
}

_mapcheck() {
  COMPREPLY=()
  # The words as the user sees them: readline cuts at '=' and ':'.
  local line=${COMP_LINE:0:COMP_POINT} word sysroot='' comm='' target='' expect='' only_operands='' i
  local -a words=()
  for ((i = 0; i < COMP_CWORD; i++)); do words+=("${COMP_WORDS[i]}"); done
  local cur=${COMP_WORDS[COMP_CWORD]}
  [[ ${line: -1} == [[:space:]] ]] && cur=''
  if [[ $cur == '=' ]]; then cur='' words+=('='); fi

  for ((i = 1; i < ${#words[@]}; i++)); do
    word=${words[i]}
    [[ $word == '=' && $expect ]] && continue
    case $expect in
      sysroot) sysroot=${word/#\~/$HOME} ;;
      name) comm=$word ;;
    esac
    if [[ $expect ]]; then
      expect=''
      continue
    fi
    [[ $only_operands ]] || case $word in
      --) only_operands=1; continue ;;
      --expect | --policy | --junit | --watch | --count | --sysroot | --backend | --color | --output | --name) expect=${word#--}; continue ;;
      --all) target=all; continue ;;
      -n?*) comm=${word:2}; continue ;;
      -[eo]?*) continue ;;
      -n | -[!-]*n) expect=name; continue ;;
      -o | -[!-]*o) expect=output; continue ;;
      -e | -[!-]*e) expect=expect; continue ;;
      -?*) continue ;;
    esac
    [[ $comm || $target ]] || target=$word
  done

  local quote=''
  if [[ $cur == [\'\"]* ]]; then quote=${cur:0:1} cur=${cur:1}; else cur=${cur//\\/}; fi

  case $expect in
    sysroot)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -d -- "$cur")
      return ;;
    backend) _mapcheck_match "$cur" "$quote" < <(printf '%s\n' auto pagemap bpf kmod); return ;;
    color) _mapcheck_match "$cur" "$quote" < <(printf '%s\n' auto always never); return ;;
    policy | junit)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$cur")
      return ;;
    watch | count | expect) return ;;
    name) _mapcheck_match "$cur" "$quote" < <(_mapcheck_comms "${sysroot%/}"); return ;;
    output)
      # After the last comma, a column that does not stand there yet.
      local before='' column
      [[ $cur == *,* ]] && before=${cur%,*},
      compopt -o nospace 2>/dev/null
      _mapcheck_match "$cur" "$quote" < <(for column in $_mapcheck_columns; do
        [[ ,$before == *,$column,* ]] || printf '%s\n' "$before$column"
      done)
      return ;;
  esac

  if [[ $cur == -* && ! $only_operands ]]; then
    # shellcheck disable=SC2086 # a list of words
    _mapcheck_match "$cur" "$quote" < <(printf '%s\n' $_mapcheck_options)
    return
  fi
  if [[ ! $target && ! $comm ]]; then
    _mapcheck_match "$cur" "$quote" < <(printf 'self\nexplain\n'; _mapcheck_pids "${sysroot%/}")
  fi
  return 0
}

complete -F _mapcheck mapcheck
