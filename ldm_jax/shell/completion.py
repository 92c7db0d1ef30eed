"""Completion of `ldm` for bash and zsh: commands, verbs, flags, keys of a config, recipes.

A script knows all words by itself, so that Tab starts no Python; only recipes in configs/ of the
current folder are looked up. Elsewhere files are offered.
"""

from ldm_jax.base import defaults, recipes, values

# What may follow `ldm COMMAND` and `ldm COMMAND --flag=`, a word a line, for both shells.
WORDS = """\
#compdef ldm
# Completion of ldm, made by: ldm completion %(called)s
_ldm_words() {
    case "$1" in
%(words)s
    esac
}
_ldm_values() {
    case "$1 $2" in
%(values)s
    esac
}
_ldm_keys() {
    %(keys)s
}
_ldm_recipes() {  # of ldm_jax, and of the current folder
    case "$1" in
%(recipes)s
    esac
    (cd "configs/$1" 2>/dev/null && ls) | sed -n 's,\\.py$,,p' |
        grep -Evx '%(others)s' | sed "s,^,${1:+$1/},"
}
"""
# Readline splits words at = and :, and replaces only what stands behind the last of them.
BASH = r"""
_ldm() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" command="" found head prefix
    local word="${line##*[[:space:]]}"
    [ "$COMP_CWORD" -gt 1 ] && command="${COMP_WORDS[1]}"
    case "$word" in
        --*=*) prefix="${word%%=*}=" found="$(_ldm_values "$command" "${word%%=*}")" ;;
        *) prefix="" found="$(_ldm_words "$command")" ;;
    esac
    COMPREPLY=($(compgen -P "$prefix" -W "$found" -- "${word#"$prefix"}"))
    if [ ${#COMPREPLY[@]} -eq 0 ]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -P "$prefix" -f -- "${word#"$prefix"}"))
    fi
    case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
    head="${word%"${word##*["$COMP_WORDBREAKS"]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
}
complete -F _ldm ldm
"""
ZSH = r"""
_ldm() {
    local command="" flag="${PREFIX%%=*}"
    local -a found
    local open
    (( CURRENT > 2 )) && command="${words[2]}"
    if [[ "$PREFIX" == --*=* ]]; then
        compset -P '*='
        found=("${(@f)$(_ldm_values "$command" "$flag")}")
    else
        found=("${(@f)$(_ldm_words "$command")}")
    fi
    compadd -S '' -- ${(M)found:#*=}
    open=$?
    compadd -- ${found:#*=} || (( ! open )) || _files
}
if [[ "$funcstack[1]" == _ldm ]]; then _ldm "$@"; else compdef _ldm ldm; fi
"""
SHELLS = {"bash": BASH, "zsh": ZSH}


def script(shell: str, commands: dict) -> str:
    """The completion of `ldm` for that shell. commands: {name: its module}."""
    words = {"": _print([*commands, "--help", "--version"])}
    offered, folders = {}, {}
    for name, command in commands.items():
        flags = [word for flag, kind in command.FLAGS.items() for word in kind.spelled(flag)]
        words[name] = _print([*getattr(command, "VERBS", ()), *flags, "--help"])
        for flag, kind in command.FLAGS.items():
            if (under := getattr(kind, "under", None)) is not None:  # it names recipes
                folders[under] = _print(_recipes(under))
                offered[f"{name} --{flag}"] = f'_ldm_recipes "{under}"'
                words[name] += "" if under else "; _ldm_keys"
            elif known := [word for word in getattr(kind, "of", ()) if word]:
                offered[f"{name} --{flag}"] = _print(known)
    head = WORDS % dict(
        called=shell,
        words=_cases(words),
        values=_cases(offered),
        keys=_print(f"--config.{key}=" for key in keys()),
        recipes=_cases(folders),
        others="|".join(("_.*", *recipes.LIBRARIES)),
    )
    return head + SHELLS[shell]


def keys() -> list[str]:
    """The keys of a config that are declared for every first or second stage."""
    found = {}
    for stage in (defaults.FirstStage, defaults.SecondStage):
        found |= dict.fromkeys(_flat(values.declared(stage)))
    return [*found]


def _flat(declared: dict, above: str = ""):
    for key, kind in declared.items():
        if isinstance(kind, type):
            yield from _flat(values.declared(kind), f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _recipes(under: str) -> list[str]:
    """The names of recipes, each also with its variants."""
    found = {name: recipes.variants(file) for name, file in recipes.names(under=under).items()}
    with_variant = [f"{name}:{v}" for name, all in found.items() for v in all if v != "..."]
    return sorted([*found, *with_variant])


def _print(words) -> str:
    return rf"printf '%s\n' {' '.join(words)}"


def _cases(rows: dict[str, str]) -> str:
    return "\n".join(f'        "{key}") {does} ;;' for key, does in rows.items())
