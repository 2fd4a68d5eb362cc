"""Print what a shell needs to complete kaifs commands: verbs, options, and names in the store.

bash: source <(kaifs completion bash), or put its output into
      ~/.local/share/bash-completion/completions/kaifs
zsh:  put its output into a file _kaifs in a folder of $fpath
fish: put its output into ~/.config/fish/completions/kaifs.fish
"""

import argparse
from typing import Final

from kaifs.cli.candidates import FILES, FOLDERS, NO_SPACE
from kaifs.cli.main import COMPLETE
from kaifs.cli.output import print_json

_BASH: Final = r"""# bash completion for kaifs
_kaifs() {
    # bash cuts words at more than blanks, such as @: what stands together is one word here.
    local line=${COMP_LINE:0:COMP_POINT} piece current start directive
    local -a words=() found=()
    for piece in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if [[ $line == [[:blank:]]* || ${#words[@]} -eq 0 ]]; then
            line=${line#"${line%%[![:blank:]]*}"}
            words+=("")
        fi
        [[ $line == "$piece"* ]] || piece=$line
        words[${#words[@]}-1]+=$piece
        line=${line#"$piece"}
    done
    current=${words[${#words[@]}-1]}
    mapfile -t found < <(command "${words[0]}" COMMAND "${words[@]:1}" 2>/dev/null)
    COMPREPLY=()
    [[ ${#found[@]} -gt 0 ]] || return
    directive=${found[${#found[@]}-1]}
    unset "found[${#found[@]}-1]"
    case $directive in
        FILES) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        FOLDERS) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current"); return ;;
        NO_SPACE) compopt -o nospace ;;
    esac
    # Only what is behind the last cut is replaced; an @ is replaced too.
    start=""
    for piece in @ = :; do
        if [[ $COMP_WORDBREAKS == *$piece* && $current == *$piece* ]]; then
            line=${current%"$piece"*}
            [[ $piece == @ ]] || line+=$piece
            [[ ${#line} -le ${#start} ]] || start=$line
        fi
    done
    for piece in "${found[@]}"; do
        piece=${piece%%$'\t'*}
        COMPREPLY+=("${piece#"$start"}")
    done
}
complete -F _kaifs kaifs
"""

_ZSH: Final = r"""#compdef kaifs
_kaifs() {
    local -a found described
    local line directive
    found=("${(@f)$(command ${(Q)words[1]} COMMAND "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    directive=$found[-1]
    found[-1]=()
    case $directive in
        FILES) _files; return ;;
        FOLDERS) _files -/; return ;;
    esac
    for line in $found; do
        if [[ $line == *$'\t'* ]]; then
            described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        else
            described+=("${line//:/\\:}")
        fi
    done
    if [[ $directive == NO_SPACE ]]; then
        _describe -V kaifs described -S ''
    else
        _describe -V kaifs described
    fi
}
if [[ $funcstack[1] == _kaifs ]]; then
    _kaifs "$@"
else
    compdef _kaifs kaifs
fi
"""

_FISH: Final = r"""# fish completion for kaifs
function __kaifs_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found (command $words[1] COMMAND $words[2..-1] "$current" 2>/dev/null)
    test (count $found) -gt 0; or return
    set -l directive $found[-1]
    set -e found[-1]
    switch $directive
        case FILES
            __fish_complete_path "$current"
        case FOLDERS
            __fish_complete_directories "$current" ''
        case '*'
            printf '%s\n' $found
    end
end
complete -c kaifs -f -k -a '(__kaifs_complete)'
"""

SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", choices=SCRIPTS, metavar="bash|zsh|fish")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    script = SCRIPTS[args.shell]
    words = {"COMMAND": COMPLETE, "FILES": FILES, "FOLDERS": FOLDERS, "NO_SPACE": NO_SPACE}
    for word, meaning in words.items():
        script = script.replace(word, meaning)
    if args.json:
        print_json({"shell": args.shell, "script": script})
    else:
        print(script, end="")
    return 0
