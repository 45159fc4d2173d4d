"""Whatever is typed, a command line is accepted, or refused in one line that names the key."""

import dataclasses
import types
import typing

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from longwave.training.command import parse
from longwave.training.config import PACKAGES, SECTIONS, Config, schemas
from longwave.training.errors import UserError
from longwave.training.overrides import HYDRA, MOST_RUNS, choices

# What only Hydra and OmegaConf would say.
THEIRS = (
    "Could not", "https://", "full_key", "object_type", "Interpolation", "Error", "Exception", "DictConfig",
    "OmegaConf", "dataclass", "_dummy_", "Merge",
)  # fmt: skip


def kinds(hint) -> set[type]:
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return {typing.get_args(part)[0] if typing.get_origin(part) is list else part for part in parts}


# (group, choice, key) of every setting, and the types that it may have.
KEYS = {
    (group, name, field.name): kinds(typing.get_type_hints(schema)[field.name])
    for group in (*PACKAGES, *SECTIONS)
    for name, schema in schemas(group)
    for field in dataclasses.fields(schema)
    if field.name != "name"
}
TOP = [field.name for field in dataclasses.fields(Config)]
GROUPS = [*PACKAGES, *SECTIONS, "recipe", "debug", "diagnostics"]

numbers = st.one_of(
    st.integers(),
    st.floats(allow_subnormal=False),
    st.sampled_from(["1e300", "-1e300", "1e12", "0x10", "1_000", "1e-300", "-0.0", ".5"]),
)
# Of Hydra's grammar, and of what a shell leaves in a word.
pieces = st.sampled_from(
    ["${nope}", "${oc.env:X}", "${model.hidden}", "${", "???", "[", "]", "{", "}", "(", ")", ",", "'", '"', "\\", "=",
     "a", "1", "null", "nan", "inf", "true", ":", ".", "/", "..", "@", "~", "+", " ", "\n", "\t", "\0", "é", "💥",
     "$", "glob(*)", "range(0,3)", "range(1,9,0)", "choice(1,2)", "interval(0,1)", "shuffle(1,2)", "int(a)",
     "extend_list(1)", "!!python/object:os", "{{x}}", "x" * 5000, "[" * 400],
)  # fmt: skip
values = st.one_of(
    numbers.map(str),
    st.lists(pieces, max_size=4).map("".join),
    st.text(max_size=20),
    st.lists(numbers, max_size=3).map(lambda found: "[" + ",".join(map(str, found)) + "]"),
)


@st.composite
def keys(draw) -> tuple[list[str], str]:
    """Overrides that choose what a key belongs to, and the key."""
    kind = draw(st.sampled_from(["setting", "setting", "setting", "top", "group", "hydra", "none"]))
    if kind == "setting":
        group, name, key = draw(st.sampled_from(sorted(KEYS)))
        # A schema may be that of several choices, of which one has its name or is made from it.
        chosen = [f"{group}={name}"] if group in ("model", "task") and name in choices(group) else []
        return [*chosen, "recipe=none", "training.steps=1"], f"{group}.{key}"
    if kind == "top":
        return [], draw(st.sampled_from(TOP))
    if kind == "group":
        return [], draw(st.sampled_from(GROUPS))
    if kind == "hydra":
        return [], draw(st.sampled_from(["hydra.run.dir", "hydra.job.env_set", "hydra", "hydra.mode", *HYDRA[:3]]))
    return [], draw(st.sampled_from(["", "x", "modle", "model.hiden", "a.b.c", "_target_", "defaults", "é"]))


lines = st.tuples(
    keys(),
    st.sampled_from(["", "", "", "", "+", "++", "~"]),
    st.sampled_from(["", "", "", "", "@x", ".0", "/x"]),
    values,
    st.lists(st.sampled_from(["-m", "--cfg", "--config-dir", "--foo", "-x", "--help"]), max_size=1),
)


def check(chosen, key, text, flags):
    try:
        parse([*flags, *chosen, text])
    except UserError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 300
        assert not [word for word in THEIRS if word in message and word not in text]
        # The first part of the key; of a flag, or where the text has no key, whatever was typed.
        named = [key.partition(".")[0], text[:20], *flags]
        assert any(part in message for part in named if part) or not key, message
    except SystemExit as error:
        pytest.fail(f"exit {error.code}")


def every(examples: int):
    """So many command lines, always the same ones; shrinking those that fail would take minutes."""

    def decorate(test):
        for line in (
            (([], "model"), "+", "", "foo", []),
            (([], "optimizer"), "", "", "../model/cornn", []),
            (([], "model.hidden"), "", "", "${model.hidden}", []),
            (([], "hydra/launcher"), "", "", "[[[[1]]]]", []),
            # Longer than a name of a file can be.
            (([], "transform"), "", "", "x" * 1000, ["--config-dir"]),
            (([], "model/" + "x" * 1000), "", "", "1", []),
        ):
            test = example(line)(test)
        phases = [Phase.explicit, Phase.generate]
        quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
        setting = settings(
            max_examples=examples, deadline=None, database=None, derandomize=True, phases=phases,
            suppress_health_check=quiet,
        )  # fmt: skip
        return setting(given(lines)(test))

    return decorate


def run(line):
    (chosen, key), sign, suffix, value, flags = line
    check(chosen, key, f"{sign}{key}{suffix}={value}", flags)


@every(60)
def test_any_command_line(line):
    run(line)


@pytest.mark.slow
@every(3000)
def test_three_thousand_command_lines(line):
    run(line)


@pytest.mark.parametrize(("value", "kind"), [(10**12, int), (1e300, float)])
def test_no_setting_takes_what_can_only_be_a_slip(value, kind):
    for group, name, key in KEYS:
        if kind not in KEYS[group, name, key]:
            continue
        schema = dict(schemas(group))[name]
        hint = typing.get_type_hints(schema)[key]
        given_value = [value] if "list[" in str(hint) else value
        with pytest.raises(ValueError, match=key):
            dataclasses.replace(_default(schema), **{key: given_value})


def _default(schema):
    needed = {f.name: "x" for f in dataclasses.fields(schema) if f.default is dataclasses.MISSING is f.default_factory}
    return schema(**needed | ({"steps": 1} if schema.__name__ == "Training" else {}))


@pytest.mark.parametrize(
    ("line", "runs"), [("seed=range(0,100000)", None), ("seed=range(0,1000)", 1000), ("seed=0,1 model=cornn,lstm", 4)]
)
def test_the_number_of_runs_is_bounded(line, runs):
    if runs is None:
        with pytest.raises(UserError, match=f"more than {MOST_RUNS} runs"):
            parse(["-m", *line.split()])
    else:
        assert len(parse(["-m", *line.split()]).configs) == runs


def test_a_pattern_of_choices():
    found = parse(["-m", "model=glob(l*)", "training.steps=1"]).configs
    assert [config.model.name for config in found] == [name for name in choices("model") if name[0] == "l"]
    with pytest.raises(UserError, match=r"^model=glob\(x\*\): matches none of antisymmetric_rnn, cornn"):
        parse(["-m", "model=glob(x*)"])
