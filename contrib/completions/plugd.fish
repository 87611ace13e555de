# Completion for fish, of plugd and of its other names. What there is to complete is
# taken from --help, so it is that of the program that is there.

# The options of what is on the command line, each with what it does.
function __plugd_options
    set -l words (commandline -opc)
    set -l command $words[1]
    if string match -qr '(^|/)plugd$' -- $words[1]
        set -q words[2]; or return
        set -a command $words[2]
    end
    for line in ($command --help 2>/dev/null)
        set -l found (string match -r '^ +(?:(-[A-Za-z]), )?(--?[A-Za-z][a-z-]*)(?:[ =]\S+)?(?: +(.*))?$' -- $line)
        or continue
        # What was not matched is left out: the short name, for most.
        echo $found[2]\t$found[-1]
        if string match -qr '^--[a-z]' -- $found[3]
            echo $found[3]\t$found[-1]
        end
    end
end

# The commands, each with what it does, which is on the line after it.
function __plugd_commands
    set -l words (commandline -opc)
    set -l name
    for line in ($words[1] --help 2>/dev/null)
        if set -l found (string match -r '^  ([a-z][a-z-]*)' -- $line)
            set name $found[2]
        else if test -n "$name"
            echo $name\t(string trim -- $line)
            set name
        end
    end
    echo --help
    echo --version
end

complete -c plugd -n 'test (count (commandline -opc)) -eq 1' -f -a '(__plugd_commands)'
complete -c plugd -n 'test (count (commandline -opc)) -gt 1' -a '(__plugd_options)'
for name in plug-and-play-event-handler netlink-datagram-socket-listen daemon-control \
    ucw-daemon-control mdevd mdevd-netlink mdevd-coldplug
    complete -c $name -a '(__plugd_options)'
end
