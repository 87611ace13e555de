# Completion for bash, of plugd and of its other names. What there is to complete is
# taken from --help, so it is that of the program that is there.

# The options in a help: short or long name, and what follows it, if anything.
_plugd_options() {
    sed -nE 's/^ +((-[A-Za-z]), )?(-[A-Za-z]|--[a-z][a-z-]*)(=[^ ]+| ([^ ]+))?( .*)?$/\2 \3 \5/p'
}

_plugd() {
    local program=${COMP_WORDS[0]} current=${COMP_WORDS[COMP_CWORD]} help short long value
    local previous=${COMP_WORDS[COMP_CWORD - 1]} command
    COMPREPLY=()
    if [ "${program##*/}" = plugd ]; then
        command=${COMP_WORDS[1]}
        if [ "$COMP_CWORD" -eq 1 ]; then
            help=$("$program" --help 2>/dev/null | sed -nE 's/^  ([a-z][a-z-]*).*/\1/p')
            COMPREPLY=($(compgen -W "$help --help --version" -- "$current"))
            return
        fi
    fi
    help=$("$program" $command --help 2>/dev/null)
    # A value of an option.
    while read -r short long value; do
        # Without a short name there is one word less.
        case $short in
        --*) value=$long long=$short ;;
        esac
        if [ "$previous" = "$long" ] || [ "$previous" = "$short" ]; then
            case $value in
            DIR | SYS | DEV | FIRMWARE)
                COMPREPLY=($(compgen -d -- "$current"))
                return
                ;;
            FILE | PATH | CONF | ADDRESS)
                COMPREPLY=($(compgen -f -- "$current"))
                return
                ;;
            stdin | netlink) COMPREPLY=($(compgen -W 'stdin netlink' -- "$current")) && return ;;
            stdout | kernel) COMPREPLY=($(compgen -W 'stdout kernel' -- "$current")) && return ;;
            [A-Z]*) return ;;
            esac
        fi
    done < <(_plugd_options <<<"$help")
    case $current in
    -*)
        COMPREPLY=($(compgen -W "$(_plugd_options <<<"$help" | sed -E 's/[^ -][^ ]*$//')" -- "$current"))
        ;;
    *)
        case $command in
        run | listen) COMPREPLY=($(compgen -c -- "$current") $(compgen -f -- "$current")) ;;
        log-level) COMPREPLY=($(compgen -W 'error warning info debug trace' -- "$current")) ;;
        *) COMPREPLY=($(compgen -f -- "$current")) ;;
        esac
        ;;
    esac
}

complete -F _plugd plugd plug-and-play-event-handler netlink-datagram-socket-listen \
    daemon-control ucw-daemon-control mdevd mdevd-netlink mdevd-coldplug
