# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# bash completion of regaudit(1). It needs nothing beyond bash.

# scripts/check-options compares these lists with --help.
_regaudit_options='--prefix --dir --pid --access --log --junit -a --all -n --name --sysroot --backend -J --json --bytes
  --noheadings --color -o --output -V --version -h --help'
_regaudit_columns='pid va size iova key device node resident extents largest page entries ideal verdict findings'

# Fills COMPREPLY with the lines of stdin that start with $1.
_regaudit_match() {
  local word quoted
  while IFS= read -r word; do
    [[ $word == "$1"* ]] || continue
    printf -v quoted '%q' "$word"
    COMPREPLY+=("${quoted//\\,/,}")
  done
}

_regaudit_pids() {
  local directory
  for directory in "$1"/proc/[0-9]*; do
    [[ -d $directory ]] && printf '%s\n' "${directory##*/}"
  done
}

_regaudit_comms() {
  cat "$1"/proc/[0-9]*/comm 2>/dev/null | sort -u
}

_regaudit_prefixes() {
  local config
  for config in "$1"/var/run/dpdk/*/config; do
    [[ -e $config ]] || continue
    config=${config%/config}
    printf '%s\n' "${config##*/}"
  done
}

_regaudit() {
  COMPREPLY=()
  local cur=${COMP_WORDS[COMP_CWORD]} word expect='' sysroot='' mode='' comm='' target='' only_operands='' i
  [[ $cur == '=' ]] && cur=''
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    [[ $word == '=' ]] && continue
    if [[ $expect ]]; then
      [[ $expect == sysroot ]] && sysroot=${word/#\~/$HOME}
      [[ $expect == name ]] && comm=1
      expect=''
      continue
    fi
    [[ $only_operands ]] || case $word in
      --) only_operands=1; continue ;;
      --sysroot | --backend | --color | --output | --prefix | --dir | --pid | --access | --log | --junit | --name) expect=${word#--}; continue ;;
      -n?* | -o?*) continue ;;
      -n | -[!-]*n) expect=name; continue ;;
      -o | -[!-]*o) expect=output; continue ;;
      -?*) continue ;;
    esac
    if [[ ! $mode ]]; then mode=$word; else target=$word; fi
  done

  case $expect in
    sysroot | dir)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -d -- "$cur")
      return ;;
    log | junit)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$cur")
      return ;;
    backend) _regaudit_match "$cur" < <(printf '%s\n' auto pagemap bpf kmod); return ;;
    color) _regaudit_match "$cur" < <(printf '%s\n' auto always never); return ;;
    access) _regaudit_match "$cur" < <(printf '%s\n' rw ro); return ;;
    prefix) _regaudit_match "$cur" < <(_regaudit_prefixes "${sysroot%/}"); return ;;
    pid) _regaudit_match "$cur" < <(_regaudit_pids "${sysroot%/}"); return ;;
    name) _regaudit_match "$cur" < <(_regaudit_comms "${sysroot%/}"); return ;;
    output)
      local before='' column
      [[ $cur == *,* ]] && before=${cur%,*},
      compopt -o nospace 2>/dev/null
      _regaudit_match "$cur" < <(for column in $_regaudit_columns; do
        [[ ,$before == *,$column,* ]] || printf '%s\n' "$before$column"
      done)
      return ;;
  esac
  if [[ $cur == -* && ! $only_operands ]]; then
    # shellcheck disable=SC2086 # a list of words
    _regaudit_match "$cur" < <(printf '%s\n' $_regaudit_options)
    return
  fi
  case $mode in
    '') _regaudit_match "$cur" < <(printf '%s\n' dpdk rdma ranges plan trace) ;;
    rdma | plan | ranges)
      if [[ ! $comm && ! $target ]]; then
        _regaudit_match "$cur" < <(printf 'self\n'; _regaudit_pids "${sysroot%/}")
      elif [[ $mode == ranges ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
      fi ;;
    trace) mapfile -t COMPREPLY < <(compgen -c -- "$cur") ;;
  esac
  return 0
}

complete -F _regaudit regaudit
