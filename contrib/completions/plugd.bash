# Completion for bash, of plugd and of its other names. What there is to complete is
# taken from --help, so it is that of the program that is there.

# The options in a help: short or long name, and what follows it, if anything.
_plugd_options() {
    sed -nE 's/^ +((-[A-Za-z]), )?(-[A-Za-z]|--[a-z][a-z-]*)(=[^ ]+| ([^ ]+))?( .*)?$/\2 \3 \5/p'
}

# Offers what compgen says, a line each.
_plugd_offer() {
    mapfile -t COMPREPLY < <(compgen "$@")
}

# The same for names of files: quoted as they need it, and a slash after directories.
_plugd_offer_files() {
    _plugd_offer "$@"
    compopt -o filenames
}

_plugd() {
    local program=${COMP_WORDS[0]} current=${COMP_WORDS[COMP_CWORD]} help short long value
    local previous=${COMP_WORDS[COMP_CWORD - 1]} command
    COMPREPLY=()
    if [ "${program##*/}" = plugd ]; then
        command=${COMP_WORDS[1]}
        if [ "$COMP_CWORD" -eq 1 ]; then
            help=$("$program" --help 2>/dev/null | sed -nE 's/^  ([a-z][a-z-]*).*/\1/p')
            _plugd_offer -W "$help --help --version" -- "$current"
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
                _plugd_offer_files -d -- "$current"
                return
                ;;
            FILE | PATH | CONF | ADDRESS)
                _plugd_offer_files -f -- "$current"
                return
                ;;
            stdin | netlink)
                _plugd_offer -W 'stdin netlink' -- "$current"
                return
                ;;
            stdout | kernel)
                _plugd_offer -W 'stdout kernel' -- "$current"
                return
                ;;
            [A-Z]*) return ;;
            esac
        fi
    done < <(_plugd_options <<<"$help")
    case $current in
    -*)
        _plugd_offer -W "$(_plugd_options <<<"$help" | sed -E 's/[^ -][^ ]*$//')" -- "$current"
        ;;
    *)
        case $command in
        run | listen) _plugd_offer_files -c -f -- "$current" ;;
        log-level) _plugd_offer -W 'error warning info debug trace' -- "$current" ;;
        *) _plugd_offer_files -f -- "$current" ;;
        esac
        ;;
    esac
}

complete -F _plugd plugd plug-and-play-event-handler netlink-datagram-socket-listen \
    daemon-control ucw-daemon-control mdevd mdevd-netlink mdevd-coldplug
