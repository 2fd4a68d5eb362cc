"""Suite files: what is read, what is refused, and what is hashed."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.errors import SuiteError
from kaifs.service.documents import SIZE_MAX
from kaifs.service.suite import TIMEOUT_S, TestCase, load_suite

TOML = b"""
[[test]]
name = "unit"
command = "make check"

[[test]]
name = "api"
command = ["curl", "-f", "http://localhost"]
timeout = 5
env = { A = "b" }
expectExit = 7
expectOutput = "^refused"
"""
YAML = b"""
test:
  - name: unit
    command: make check
  - name: api
    command: [curl, -f, "http://localhost"]
    timeout: 5
    env: {A: b}
    expectExit: 7
    expectOutput: "^refused"
"""
JSON = json.dumps(
    {
        "test": [
            {"name": "unit", "command": "make check"},
            {
                "name": "api",
                "command": ["curl", "-f", "http://localhost"],
                "timeout": 5.0,
                "env": {"A": "b"},
                "expectExit": 7,
                "expectOutput": "^refused",
            },
        ]
    }
).encode()


@pytest.mark.parametrize(
    ("payload", "name"), [(TOML, "s.toml"), (YAML, "s.yaml"), (YAML, "S.YML"), (JSON, "s.json")]
)
def test_a_suite_has_one_shape_in_every_notation(payload: bytes, name: str) -> None:
    suite = load_suite(payload, name)

    assert suite.test == (
        TestCase(name="unit", command="make check"),
        TestCase(
            name="api",
            command=("curl", "-f", "http://localhost"),
            timeout=5,
            env={"A": "b"},
            expect_exit=7,
            expect_output="^refused",
        ),
    )
    assert suite.test[0].timeout == TIMEOUT_S
    assert suite.hash == load_suite(TOML, "s.toml").hash


def test_the_hash_tells_any_change_of_meaning() -> None:
    changed = [
        TOML.replace(b"unit", b"unit2"),
        TOML.replace(b"timeout = 5", b"timeout = 6"),
        TOML.replace(b'"b"', b'"c"'),
        TOML.replace(b'"make check"', b'["make", "check"]'),
        TOML.replace(b"expectExit = 7", b""),
    ]

    hashes = {load_suite(payload, "s.toml").hash for payload in [TOML, *changed]}

    assert len(hashes) == 6


def _one(**fields: object) -> bytes:
    return json.dumps({"test": [{"name": "n", "command": "c", **fields}]}).encode()


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (TOML, "suite.txt"),
        (TOML, "suite"),
        (b"test = 1", "s.toml"),
        (b"test = []", "s.toml"),
        (b"", "s.toml"),
        (b"", "s.yaml"),
        (b"", "s.json"),
        (b"not toml", "s.toml"),
        (b"{", "s.json"),
        (b"\xff\xfe", "s.toml"),
        (b"[[test]]\nname = 'n'\n", "s.toml"),
        (b"[[test]]\ncommand = 'c'\n", "s.toml"),
        (b"other = 1\n" + TOML, "s.toml"),
        (_one(unknown=1), "s.json"),
        (_one(command=""), "s.json"),
        (_one(command=[]), "s.json"),
        (_one(command=[1]), "s.json"),
        (_one(command="a\0b"), "s.json"),
        (_one(name=""), "s.json"),
        (_one(name="two\nlines"), "s.json"),
        (_one(timeout=0), "s.json"),
        (_one(timeout=-1), "s.json"),
        (_one(timeout=1e9), "s.json"),
        (_one(env={"A=B": "c"}), "s.json"),
        (_one(expectExit=256), "s.json"),
        (_one(expectOutput="("), "s.json"),
        (_one(expectOutput="(" * 900), "s.json"),
        (_one(expectOutput="x" * 2000), "s.json"),
        (b'{"test": [{"name": "n", "command": "\\ud800"}]}', "s.json"),
        (TOML + TOML, "s.toml"),
        (TOML + b"#" * SIZE_MAX, "s.toml"),
        (b"a: &x [1]\nb: *x\n", "s.yaml"),
        (b"test: !!python/object/apply:os.system ['true']\n", "s.yaml"),
        (b"test: !!binary aGk=\n", "s.yaml"),
        (b"? [1]\n: 2\n", "s.yaml"),
        (b"a: 2024-99-99\n", "s.yaml"),
        (b"a: " + b"9" * 5000, "s.yaml"),
        (b"[" * 60_000, "s.yaml"),
        (b"[" * 60_000, "s.json"),
        (b"a = " + b"[" * 60_000, "s.toml"),
        (b"a" + b".a" * 30_000 + b" = 1", "s.toml"),
    ],
)
def test_what_is_no_suite_is_refused_in_one_line(payload: bytes, name: str) -> None:
    """Fast, too, however hostile."""
    begun = time.monotonic()

    with pytest.raises(SuiteError) as refused:
        load_suite(payload, name)

    assert time.monotonic() - begun < 2
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert refused.value.subject.startswith(name)


@given(payload=st.binary(max_size=200), name=st.sampled_from(["s.toml", "s.yaml", "s.json"]))
def test_no_bytes_crash_the_reader(payload: bytes, name: str) -> None:
    with pytest.raises(SuiteError):
        load_suite(payload, name)


@given(
    text=st.text("[]{}:,-!&*|>'\"#%@? \n\ta1~", max_size=60),
    name=st.sampled_from(["s.toml", "s.yaml", "s.json"]),
)
def test_no_text_crashes_the_reader(text: str, name: str) -> None:
    with pytest.raises(SuiteError):
        load_suite(text.encode(), name)
