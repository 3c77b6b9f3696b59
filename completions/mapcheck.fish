# SPDX-License-Identifier: MIT
# fish completion of mapcheck(1).

# scripts/check-options compares this list with --help.
set -g __mapcheck_columns verdict name pid comm vma end size perms kind window pages ok findings backend

# Fills __mapcheck_sysroot, __mapcheck_comm and __mapcheck_operands from the words before the cursor.
function __mapcheck_parse
    set -g __mapcheck_sysroot ''
    set -g __mapcheck_comm ''
    set -g __mapcheck_operands
    set -l expect
    set -l words (commandline -opc)
    for word in $words[2..-1]
        switch $expect
            case sysroot
                set -g __mapcheck_sysroot (string trim -r -c / -- $word)
            case name
                set -g __mapcheck_comm $word
        end
        if test -n "$expect"
            set expect
            continue
        end
        switch $word
            case '--sysroot=*'
                set -g __mapcheck_sysroot (string trim -r -c / -- (string replace -- --sysroot= '' $word))
            case '--name=*'
                set -g __mapcheck_comm (string replace -- --name= '' $word)
            case --sysroot
                set expect sysroot
            case -n --name
                set expect name
            case --all
                set -ga __mapcheck_operands all
            case -e --expect --policy --junit -o --output --backend --color --watch --count
                set expect other
            case '-*'
            case '*'
                set -ga __mapcheck_operands $word
        end
    end
end

# Processes with user memory, as PID, tab, comm: a kernel thread or zombie has no command line.
function __mapcheck_processes
    for directory in $__mapcheck_sysroot/proc/*
        string match -qr '/[0-9]+$' -- $directory; or continue
        if test -z "$__mapcheck_sysroot"
            test -n "$(head -c 1 $directory/cmdline 2>/dev/null | string collect)"; or continue
        end
        printf '%s\t%s\n' (string replace -r '.*/' '' -- $directory) (cat $directory/comm 2>/dev/null)
    end
end

function __mapcheck_wants_target
    __mapcheck_parse
    test -z "$__mapcheck_comm" -a (count $__mapcheck_operands) -eq 0
end

function __mapcheck_targets
    __mapcheck_parse
    printf 'self\tmapcheck itself\n'
    printf 'explain\tmay /dev/mem map these addresses?\n'
    __mapcheck_processes
end

function __mapcheck_comms
    __mapcheck_parse
    __mapcheck_processes | string replace -r '^[0-9]+\t' '' | sort -u
end

complete -c mapcheck -f
complete -c mapcheck -n __mapcheck_wants_target -k -a '(__mapcheck_targets)'
complete -c mapcheck -s e -l expect -x -d 'Check SELECT=WINDOW'
complete -c mapcheck -l policy -x -a '(__fish_complete_path)' -d 'Check what FILE says'
complete -c mapcheck -l auto -d 'Check every device mapping'
complete -c mapcheck -l all -d 'Every process'
complete -c mapcheck -l print-policy -d 'Write a policy'
complete -c mapcheck -l junit -x -a '(__fish_complete_path)' -d 'Write a JUnit document'
complete -c mapcheck -l tap -d 'Print TAP'
complete -c mapcheck -l openmetrics -d 'Print OpenMetrics'
complete -c mapcheck -l watch -x -d 'Check again every SECONDS'
complete -c mapcheck -l count -x -d 'With --watch: stop after N looks'
complete -c mapcheck -s n -l name -x -a '(__mapcheck_comms)' -d 'The process with this command name'
complete -c mapcheck -l sysroot -x -a '(__fish_complete_directories)' -d 'Read a recorded system'
complete -c mapcheck -l backend -x -a 'auto pagemap bpf kmod' -d 'Where page facts come from'
complete -c mapcheck -s J -l json -d 'Print JSON'
complete -c mapcheck -l bytes -d 'Sizes as plain numbers of bytes'
complete -c mapcheck -l noheadings -d 'No heading line'
complete -c mapcheck -l color -x -a 'auto always never' -d 'Colour the output'
complete -c mapcheck -s o -l output -x -a '(__fish_append , $__mapcheck_columns)' -d 'Columns to print'
complete -c mapcheck -s V -l version -d 'Print the version'
complete -c mapcheck -s h -l help -d 'Print help'
