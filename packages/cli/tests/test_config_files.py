from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonargparse import get_loader

from fulmen.cli.config_files import (
    config_files,
    has_reference,
    import_folders,
    key_set_twice,
    locate,
    read_config,
    saved_in,
    yaml_problem,
)

WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # YAML quotes them
keys = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda key: key not in WORDS)
configs = st.recursive(st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=4), max_leaves=8)


def paths_to(config: Any) -> list[tuple[str, ...]]:
    if not isinstance(config, dict):
        return []
    below = [(key, *path) for key, value in config.items() for path in [(), *paths_to(value)]]
    return below


@example("a: {b: foreign.T\thing}")  # of the loaders, only that of libyaml takes it
@given(st.text(st.sampled_from("ab:-{}[], \t\n'&*!0"), max_size=12))
def test_what_the_parser_reads_is_read_alike(text: str) -> None:
    try:
        expected = get_loader("yaml")(text)
    except (yaml.YAMLError, ValueError):
        assert read_config(text) is None
        return
    except (TypeError, AttributeError):  # it takes keys for texts, where all values are empty
        return
    if not isinstance(expected, str):  # a text that only looks like YAML stays one
        assert read_config(text) == expected


@settings(max_examples=30)  # each example writes a file
@given(st.dictionaries(keys, configs, min_size=1, max_size=4))
def test_each_key_is_found_on_its_line(tmp_path_factory: Any, config: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(yaml.safe_dump(config, default_flow_style=False))
    lines = path.read_text().splitlines()
    for keys_ in paths_to(config):
        place = locate(keys_, ["--config", str(path)])
        assert place is not None
        name, _, line = place.partition(", line ")
        text = lines[int(line) - 1]
        assert name == str(path)
        assert text.strip().startswith(f"{keys_[-1]}:")
        assert len(text) - len(text.lstrip()) == 2 * (len(keys_) - 1)


@settings(max_examples=20)  # each example writes a file
@given(st.dictionaries(keys, configs, min_size=1, max_size=4), st.data())
def test_a_key_that_is_set_twice_is_found(tmp_path_factory: Any, config: dict[str, Any], data: Any) -> None:
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(yaml.safe_dump(config, default_flow_style=False))
    assert key_set_twice(["--config", str(path)]) is None
    keys_ = data.draw(st.sampled_from(paths_to(config)))
    lines = path.read_text().splitlines()
    place = locate(keys_, ["--config", str(path)])
    assert place is not None
    first = int(place.rpartition(" ")[2])
    lines.insert(first - 1, f"{lines[first - 1].partition(':')[0]}: 7")
    path.write_text("\n".join(lines))
    assert key_set_twice(["--config", str(path)]) == (str(path), ".".join(keys_), first, first + 1)


def test_anchors_and_merged_mappings_and_other_types_set_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    merged = "a: &a {x: 1}\nb: &b {x: 2}\nc:\n  <<: *a\n  <<: *b\n  x: 3\nd: [*a, *b, {x: 4}]\ne: &e [*e]\n"
    path.write_text(f"{merged}f: {{1: x, '1': y}}\n")
    assert key_set_twice(["--config", str(path)]) is None


def test_files_are_named_in_any_form() -> None:
    arguments = ["fit", "-c", "a.yaml", "--config=b.yaml", "--model", "M", "--config", "c.yaml"]
    assert config_files(arguments) == ["a.yaml", "b.yaml", "c.yaml"]


def test_the_folder_of_a_file_that_exists_is_searched_for_modules(tmp_path: Path) -> None:
    config = tmp_path / "sub" / "c.yaml"
    config.parent.mkdir()
    config.write_text("a: 1\n")
    assert import_folders(["--config", str(config), "-c", str(tmp_path / "none" / "c.yaml")]) == [str(config.parent)]


def test_the_last_file_with_a_key_wins(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"# {name}\nkey: 1\n")
    arguments = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    assert locate(["key"], arguments) == f"{tmp_path / 'b.yaml'}, line 2"


def test_keys_are_found_in_lists(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("callbacks:\n- class_path: A\n- class_path: B\n  init_args:\n    wrong: 1\n")
    assert locate(["callbacks", "init_args", "wrong"], ["--config", str(path)]) == f"{path}, line 5"


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb: [1,\nc: 2\n")
    found = yaml_problem(["--config", str(path)])
    assert found is not None
    assert found[0] == str(path)
    assert found[1].startswith("line ")


def test_a_tag_is_a_problem_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb: !!python/name:os.system\n")
    found = yaml_problem(["--config", str(path)])
    assert found is not None
    assert found[1].startswith("line 2: could not determine a constructor for the tag")
    assert read_config(str(path)) is None


def test_remote_files_are_read(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://conf/c.yaml", "w") as file:
        file.write("# in /somewhere\nkey:\n  inner: ${other}\n")
    arguments = ["--config=memory://conf/c.yaml", "--config", "memory://conf/none.yaml"]
    assert locate(["key", "inner"], arguments) == "memory://conf/c.yaml, line 3"
    assert saved_in(arguments) == "/somewhere"
    assert has_reference(arguments)
    assert read_config("memory://conf/c.yaml") == {"key": {"inner": "${other}"}}
    assert import_folders(arguments) == []


def test_a_value_that_is_no_file_is_its_own_text() -> None:
    assert read_config("{a: s3://b}") == {"a": "s3://b"}
    assert read_config("[1, 2") is None
    assert not has_reference(["--x", "{a: s3://b}", "$HOME"])
    assert has_reference(["--x=a-${b}"])


@pytest.mark.parametrize("text", ["a: " + "[" * 300_000, "a: " + "[" * 300 + "]" * 300])
def test_a_file_that_is_nested_too_deeply_ends_no_process(text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(RecursionError, match="deep"):
        key_set_twice(["--config", str(tmp_path / "deep.yaml")])


@pytest.mark.parametrize("storey", ["[*{0}, *{0}]", "{{b: *{0}, c: *{0}}}"])
def test_anchors_without_end_are_refused_and_not_walked_through(storey: str, tmp_path: Path) -> None:
    lines = ["a0: &a0 [1]", *(f"a{n}: &a{n} {storey.format(f'a{n - 1}')}" for n in range(1, 60))]
    for num_storeys, refused in ((8, False), (60, True)):
        (tmp_path / "c.yaml").write_text("\n".join(lines[:num_storeys]))
        arguments = ["--config", str(tmp_path / "c.yaml")]
        if refused:
            with pytest.raises(RecursionError, match=r"c\.yaml"):
                key_set_twice(arguments)
        else:
            assert key_set_twice(arguments) is None
