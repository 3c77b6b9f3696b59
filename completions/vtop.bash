# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# bash completion of vtop(1). It needs nothing beyond bash.

# scripts/check-options compares these lists with --help.
_vtop_options='-p --pages -f --frames -w --walk --watch --count --threads -n --name --sysroot --backend -J --json --bytes
  --noheadings --color -o --output -V --version -h --help'
_vtop_columns='va end size state pa pfn leaf bits swap pte cache backend perms offset dev inode class kind flags mapcount memcg
  node region vmflags name reason'

# Processes below $1 that have user memory: a kernel thread or zombie has no command line. In a recorded system that
# may not be recorded.
_vtop_pids() {
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

_vtop_comms() {
  local pid
  while read -r pid; do
    { cat "$1/proc/$pid/comm"; } 2>/dev/null
  done < <(_vtop_pids "$1") | sort -u
}

# What process $2 maps: names in brackets, and basenames of files with the '+' that must follow.
_vtop_names() {
  local path
  while read -r _ _ _ _ _ path; do
    path=${path% (deleted)}
    case $path in
      '['*']') printf '%s\n' "$path" ;;
      /*) printf '%s+\n' "${path##*/}" ;;
    esac
  done < <(cat "$1/proc/$2/maps" 2>/dev/null) | sort -u
}

# Fills COMPREPLY with the lines of stdin that start with $1, quoted as the shell needs it.
_vtop_match() {
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

_vtop() {
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
      --sysroot | --backend | --color | --output | --watch | --count | --threads | --name) expect=${word#--}; continue ;;
      -n?*) comm=${word:2}; continue ;;
      -o?*) continue ;;
      -n | -[!-]*n) expect=name; continue ;;
      -o | -[!-]*o) expect=output; continue ;;
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
    backend) _vtop_match "$cur" "$quote" < <(printf '%s\n' auto pagemap bpf kmod); return ;;
    color) _vtop_match "$cur" "$quote" < <(printf '%s\n' auto always never); return ;;
    threads) _vtop_match "$cur" "$quote" < <(printf '%s\n' 1 2); return ;;
    watch | count) return ;;
    name) _vtop_match "$cur" "$quote" < <(_vtop_comms "${sysroot%/}"); return ;;
    output)
      # After the last comma, a column that does not stand there yet.
      local before='' column
      [[ $cur == *,* ]] && before=${cur%,*},
      compopt -o nospace 2>/dev/null
      _vtop_match "$cur" "$quote" < <(for column in $_vtop_columns; do
        [[ ,$before == *,$column,* ]] || printf '%s\n' "$before$column"
      done)
      return ;;
  esac

  if [[ $cur == -* && ! $only_operands ]]; then
    # shellcheck disable=SC2086 # a list of words
    _vtop_match "$cur" "$quote" < <(printf '%s\n' $_vtop_options)
    return
  fi
  if [[ ! $target && ! $comm ]]; then
    _vtop_match "$cur" "$quote" < <(printf 'self\n'; _vtop_pids "${sysroot%/}")
    return
  fi
  if [[ $comm ]]; then
    local pid name
    while read -r pid; do
      name=''
      { read -r name <"${sysroot%/}/proc/$pid/comm"; } 2>/dev/null
      if [[ $name == "$comm" ]]; then
        target=$pid
        break
      fi
    done < <(_vtop_pids "${sysroot%/}" 2>/dev/null)
  fi
  # A file's name is not the whole word: an offset follows.
  _vtop_match "$cur" "$quote" < <(_vtop_names "${sysroot%/}" "$target")
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *+ ]] && compopt -o nospace 2>/dev/null
  return 0
}

complete -F _vtop vtop
