# SPDX-License-Identifier: MIT
# fish completion of vmastat(1).

# scripts/check-options compares this list with --help.
set -g __vmastat_columns time pid comm start end perms offset dev inode class kind vmas size mapped rss drss pss \
    uss shared swap dswap swap_pss pss_dirty accessed lazyfree locked hugetlb device ddevice uncounted guard \
    special unseen pte pmd pud leaf extents largest runs nodes zero ksm dirty referenced active mlocked flags \
    folios policy split thp name

# Fills __vmastat_sysroot, __vmastat_comm and __vmastat_operands from the words before the cursor.
function __vmastat_parse
    set -g __vmastat_sysroot ''
    set -g __vmastat_comm ''
    set -g __vmastat_operands
    set -l expect
    set -l words (commandline -opc)
    for word in $words[2..-1]
        switch $expect
            case sysroot
                set -g __vmastat_sysroot (string trim -r -c / -- $word)
            case name
                set -g __vmastat_comm $word
        end
        if test -n "$expect"
            set expect
            continue
        end
        switch $word
            case '--sysroot=*'
                set -g __vmastat_sysroot (string trim -r -c / -- (string replace -- --sysroot= '' $word))
            case '--name=*'
                set -g __vmastat_comm (string replace -- --name= '' $word)
            case --sysroot
                set expect sysroot
            case -n --name
                set expect name
            case -o --output --backend --color --watch --count --threads --by --sort --top --html
                set expect other
            case '-*'
            case '*'
                set -ga __vmastat_operands $word
        end
    end
end

# Processes with user memory, as PID, tab, comm: a kernel thread or zombie has no command line.
function __vmastat_processes
    for directory in $__vmastat_sysroot/proc/*
        string match -qr '/[0-9]+$' -- $directory; or continue
        if test -z "$__vmastat_sysroot"
            test -n "$(head -c 1 $directory/cmdline 2>/dev/null | string collect)"; or continue
        end
        printf '%s\t%s\n' (string replace -r '.*/' '' -- $directory) (cat $directory/comm 2>/dev/null)
    end
end

function __vmastat_targets
    __vmastat_parse
    printf 'self\tvmastat itself\n'
    __vmastat_processes
end

function __vmastat_comms
    __vmastat_parse
    __vmastat_processes | string replace -r '^[0-9]+\t' '' | sort -u
end

complete -c vmastat -f
complete -c vmastat -k -a '(__vmastat_targets)'
complete -c vmastat -l by -x -a 'vma class kind file node process' -d 'One row for each'
complete -c vmastat -s a -l all -d 'Every process'
complete -c vmastat -l sort -x -a '$__vmastat_columns' -d 'Sort by this column'
complete -c vmastat -l top -x -d 'Print only the first N rows'
complete -c vmastat -s p -l pages -d 'Add columns from the flags of frames'
complete -c vmastat -l smaps -d 'Add what smaps alone tells'
complete -c vmastat -l thp -d 'Why each mapping is not on huge pages'
complete -c vmastat -l tree -d 'The mappings of each file below it'
complete -c vmastat -l map -d 'Draw the address space'
complete -c vmastat -l html -x -a '(__fish_complete_path)' -d 'Write a report with pictures'
complete -c vmastat -l openmetrics -d 'Metrics for the node exporter'
complete -c vmastat -l watch -x -d 'Look again every SECONDS'
complete -c vmastat -l count -x -d 'With --watch: stop after N looks'
complete -c vmastat -l threads -x -a '1 2' -d 'Threads for long walks'
complete -c vmastat -s n -l name -x -a '(__vmastat_comms)' -d 'The process with this command name'
complete -c vmastat -l sysroot -x -a '(__fish_complete_directories)' -d 'Read a recorded system'
complete -c vmastat -l backend -x -a 'auto pagemap bpf kmod' -d 'Where page facts come from'
complete -c vmastat -s J -l json -d 'Print JSON'
complete -c vmastat -l bytes -d 'Sizes as plain numbers of bytes'
complete -c vmastat -l noheadings -d 'No heading line'
complete -c vmastat -l color -x -a 'auto always never' -d 'Colour the output'
complete -c vmastat -s o -l output -x -a '(__fish_append , $__vmastat_columns)' -d 'Columns to print'
complete -c vmastat -s V -l version -d 'Print the version'
complete -c vmastat -s h -l help -d 'Print help'
