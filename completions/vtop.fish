# SPDX-License-Identifier: MIT
# fish completion of vtop(1).

# scripts/check-options compares this list with --help.
set -g __vtop_columns va end size state pa pfn leaf bits swap pte cache backend perms offset dev inode class kind flags mapcount memcg \
    node region vmflags name reason

# Fills __vtop_sysroot, __vtop_comm and __vtop_operands from the words before the cursor.
function __vtop_parse
    set -g __vtop_sysroot ''
    set -g __vtop_comm ''
    set -g __vtop_operands
    set -l expect
    set -l words (commandline -opc)
    for word in $words[2..-1]
        switch $expect
            case sysroot
                set -g __vtop_sysroot (string trim -r -c / -- $word)
            case name
                set -g __vtop_comm $word
        end
        if test -n "$expect"
            set expect
            continue
        end
        switch $word
            case '--sysroot=*'
                set -g __vtop_sysroot (string trim -r -c / -- (string replace -- --sysroot= '' $word))
            case '--name=*'
                set -g __vtop_comm (string replace -- --name= '' $word)
            case --sysroot
                set expect sysroot
            case -n --name
                set expect name
            case -o --output --backend --color --watch --count --threads
                set expect other
            case '-*'
            case '*'
                set -ga __vtop_operands $word
        end
    end
end

# Processes with user memory, as PID, tab, comm: a kernel thread or zombie has no command line.
function __vtop_processes
    for directory in $__vtop_sysroot/proc/*
        string match -qr '/[0-9]+$' -- $directory; or continue
        if test -z "$__vtop_sysroot"
            test -n "$(head -c 1 $directory/cmdline 2>/dev/null | string collect)"; or continue
        end
        printf '%s\t%s\n' (string replace -r '.*/' '' -- $directory) (cat $directory/comm 2>/dev/null)
    end
end

function __vtop_wants_target
    __vtop_parse
    test -z "$__vtop_comm" -a (count $__vtop_operands) -eq 0
end

function __vtop_wants_address
    not __vtop_wants_target
end

function __vtop_targets
    __vtop_parse
    printf 'self\tvtop itself\n'
    __vtop_processes
end

function __vtop_comms
    __vtop_parse
    __vtop_processes | string replace -r '^[0-9]+\t' '' | sort -u
end

# What the process maps: names in brackets, and basenames of files with the '+' that must follow.
function __vtop_addresses
    __vtop_parse
    set -l pid $__vtop_operands[1]
    if test -n "$__vtop_comm"
        set pid (__vtop_processes | string match -r "^[0-9]+(?=\t"(string escape --style=regex -- $__vtop_comm)"\$)")[1]
    end
    cat $__vtop_sysroot/proc/$pid/maps 2>/dev/null | string replace -r '^(\S+\s+){5}' '' | sort -u | while read -l name
        set name (string replace -r ' \(deleted\)$' '' -- $name)
        switch $name
            case '[*]'
                printf '%s\tmapping\n' $name
            case '/*'
                printf '%s+\tfile+offset\n' (string replace -r '.*/' '' -- $name)
        end
    end
end

complete -c vtop -f
complete -c vtop -n __vtop_wants_target -k -a '(__vtop_targets)'
complete -c vtop -n __vtop_wants_address -a '(__vtop_addresses)'
complete -c vtop -s p -l pages -d 'One row for each page'
complete -c vtop -s f -l frames -d 'Add the facts of each frame'
complete -c vtop -s w -l walk -d 'Print the page-table walk'
complete -c vtop -l watch -x -d 'Look again every SECONDS'
complete -c vtop -l count -x -d 'With --watch: stop after N looks'
complete -c vtop -l threads -x -a '1 2' -d 'Threads for long walks'
complete -c vtop -s n -l name -x -a '(__vtop_comms)' -d 'The process with this command name'
complete -c vtop -l sysroot -x -a '(__fish_complete_directories)' -d 'Read a recorded system'
complete -c vtop -l backend -x -a 'auto pagemap bpf kmod' -d 'Where page facts come from'
complete -c vtop -s J -l json -d 'Print JSON'
complete -c vtop -l bytes -d 'Sizes as plain numbers of bytes'
complete -c vtop -l noheadings -d 'No heading line'
complete -c vtop -l color -x -a 'auto always never' -d 'Colour the output'
complete -c vtop -s o -l output -x -a '(__fish_append , $__vtop_columns)' -d 'Columns to print'
complete -c vtop -s V -l version -d 'Print the version'
complete -c vtop -s h -l help -d 'Print help'
