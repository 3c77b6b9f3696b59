# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# bash completion of vmastat(1). It needs nothing beyond bash.

# scripts/check-options compares these lists with --help.
_vmastat_options='--by -a --all --sort --top -p --pages --smaps --thp --tree --map --html --openmetrics --watch --count --threads -n --name --sysroot --backend -J --json --bytes
  --noheadings --color -o --output -V --version -h --help'
_vmastat_columns='time pid comm start end perms offset dev inode class kind vmas size mapped rss drss pss uss shared
  swap dswap swap_pss pss_dirty accessed lazyfree locked hugetlb device ddevice uncounted guard special unseen pte
  pmd pud leaf extents largest runs nodes zero ksm dirty referenced active mlocked flags folios policy split thp
  name'

# Processes below $1 that have user memory: a kernel thread or zombie has no command line. In a recorded system that
# may not be recorded.
_vmastat_pids() {
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

_vmastat_comms() {
  local pid
  while read -r pid; do
    { cat "$1/proc/$pid/comm"; } 2>/dev/null
  done < <(_vmastat_pids "$1") | sort -u
}

# Fills COMPREPLY with the lines of stdin that start with $1, quoted as the shell needs it.
_vmastat_match() {
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

_vmastat() {
  COMPREPLY=()
  # The words as the user sees them: readline cuts at '=' and ':'.
  local line=${COMP_LINE:0:COMP_POINT} word sysroot='' expect='' only_operands='' i
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
    esac
    if [[ $expect ]]; then
      expect=''
      continue
    fi
    [[ $only_operands ]] || case $word in
      --) only_operands=1; continue ;;
      --sysroot | --backend | --color | --output | --watch | --count | --threads | --name | --by | --sort | --top | --html) expect=${word#--}; continue ;;
      -n?* | -o?*) continue ;;
      -n | -[!-]*n) expect=name; continue ;;
      -o | -[!-]*o) expect=output; continue ;;
      -?*) continue ;;
    esac
  done

  local quote=''
  if [[ $cur == [\'\"]* ]]; then quote=${cur:0:1} cur=${cur:1}; else cur=${cur//\\/}; fi

  case $expect in
    sysroot)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -d -- "$cur")
      return ;;
    backend) _vmastat_match "$cur" "$quote" < <(printf '%s\n' auto pagemap bpf kmod); return ;;
    color) _vmastat_match "$cur" "$quote" < <(printf '%s\n' auto always never); return ;;
    threads) _vmastat_match "$cur" "$quote" < <(printf '%s\n' 1 2); return ;;
    by) _vmastat_match "$cur" "$quote" < <(printf '%s\n' vma class kind file node process); return ;;
    sort)
      # shellcheck disable=SC2086 # a list of words
      _vmastat_match "$cur" "$quote" < <(printf '%s\n' $_vmastat_columns)
      return ;;
    html)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$cur")
      return ;;
    watch | count | top) return ;;
    name) _vmastat_match "$cur" "$quote" < <(_vmastat_comms "${sysroot%/}"); return ;;
    output)
      # After the last comma, a column that does not stand there yet.
      local before='' column
      [[ $cur == *,* ]] && before=${cur%,*},
      compopt -o nospace 2>/dev/null
      _vmastat_match "$cur" "$quote" < <(for column in $_vmastat_columns; do
        [[ ,$before == *,$column,* ]] || printf '%s\n' "$before$column"
      done)
      return ;;
  esac

  if [[ $cur == -* && ! $only_operands ]]; then
    # shellcheck disable=SC2086 # a list of words
    _vmastat_match "$cur" "$quote" < <(printf '%s\n' $_vmastat_options)
    return
  fi
  _vmastat_match "$cur" "$quote" < <(printf 'self\n'; _vmastat_pids "${sysroot%/}")
}

complete -F _vmastat vmastat
