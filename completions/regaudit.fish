# SPDX-License-Identifier: MIT
# fish completion of regaudit(1).

# scripts/check-options compares this list with --help.
set -g __regaudit_columns pid va size iova key device node resident extents largest page entries ideal verdict findings

# Operands before the cursor.
function __regaudit_operands
    set -l expect
    set -l words (commandline -opc)
    for word in $words[2..-1]
        if test -n "$expect"
            set expect
            continue
        end
        switch $word
            case '--*=*'
            case -n --name -o --output --backend --color --sysroot --prefix --dir --pid --access --log --junit
                set expect yes
            case '-*'
            case '*'
                echo $word
        end
    end
end

function __regaudit_wants_mode
    test (count (__regaudit_operands)) -eq 0
end

function __regaudit_wants_target
    set -l operands (__regaudit_operands)
    test (count $operands) -eq 1; and contains -- $operands[1] rdma ranges plan
end

function __regaudit_wants_file
    set -l operands (__regaudit_operands)
    test (count $operands) -eq 2; and test $operands[1] = ranges
end

function __regaudit_pids
    for directory in /proc/*
        string match -qr '/[0-9]+$' -- $directory; or continue
        printf '%s\t%s\n' (string replace -r '.*/' '' -- $directory) (cat $directory/comm 2>/dev/null)
    end
end

function __regaudit_comms
    __regaudit_pids | string replace -r '^[0-9]+\t' '' | sort -u
end

function __regaudit_prefixes
    for directory in /var/run/dpdk/*
        string replace -r '.*/' '' -- $directory
    end
end

complete -c regaudit -f
complete -c regaudit -n __regaudit_wants_mode -a 'dpdk rdma ranges plan trace'
complete -c regaudit -n __regaudit_wants_target -k -a '(__regaudit_pids)'
complete -c regaudit -n __regaudit_wants_file -a '(__fish_complete_path)'
complete -c regaudit -l prefix -x -a '(__regaudit_prefixes)' -d 'The primary with this prefix'
complete -c regaudit -l dir -x -a '(__fish_complete_directories)' -d 'Its runtime directory, or a copy'
complete -c regaudit -l pid -x -a '(__regaudit_pids)' -d 'The process to look at'
complete -c regaudit -l access -x -a 'rw ro' -d 'What the device may do'
complete -c regaudit -l log -x -a '(__fish_complete_path)' -d 'The log of regaudit trace'
complete -c regaudit -l junit -x -a '(__fish_complete_path)' -d 'Also write JUnit XML'
complete -c regaudit -s a -l all -d 'One row for each registration'
complete -c regaudit -s n -l name -x -a '(__regaudit_comms)' -d 'The process with this command name'
complete -c regaudit -l sysroot -x -a '(__fish_complete_directories)' -d 'Read a recorded system'
complete -c regaudit -l backend -x -a 'auto pagemap bpf kmod' -d 'Where page facts come from'
complete -c regaudit -s J -l json -d 'Print JSON'
complete -c regaudit -l bytes -d 'Sizes as plain numbers of bytes'
complete -c regaudit -l noheadings -d 'No heading line'
complete -c regaudit -l color -x -a 'auto always never' -d 'Colour the output'
complete -c regaudit -s o -l output -x -a '(__fish_append , $__regaudit_columns)' -d 'Columns to print'
complete -c regaudit -s V -l version -d 'Print the version'
complete -c regaudit -s h -l help -d 'Print help'
