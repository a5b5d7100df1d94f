"""Whatever stands in the files of meta/, reading ends in demonstrations or in a ValueError of one line."""

import copy
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.recordings import record, replace
from vla_mini.data.reader import Demonstrations, read_dataset

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS
    | st.sampled_from(["video", "image", "float32", "v2.1", "v3.0", "0:2", "{episode_index}", "../x", "observation.state"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def nodes(tree, path=()):
    found = [path]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        found += nodes(value, (*path, key))
    return found


@st.composite
def changed(draw, tree):
    """The tree with other values, without some, or with further ones, in one to three places."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        if not (places := nodes(tree)[1:]):
            break
        *parents, key = draw(st.sampled_from(places))
        node = tree
        for parent in parents:
            node = node[parent]
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove":
            del node[key]
        elif how == "add" and isinstance(node, dict):
            node[draw(st.text(max_size=6))] = draw(JSON)
        else:
            node[key] = draw(JSON)
    return tree


@pytest.fixture(scope="module")
def format_2(tmp_path_factory):
    return record(tmp_path_factory.mktemp("random") / "d", version="v2.1", video="libx264")


@pytest.fixture(scope="module")
def format_3(tmp_path_factory):
    return record(tmp_path_factory.mktemp("random") / "d", version="v3.0", video="libx264")


@pytest.fixture(params=["format_2", "format_3"])
def recorded(request):
    """A dataset, and its info.json."""
    root = request.getfixturevalue(request.param)
    return root, json.loads((root / "meta/info.json").read_text())


def read(root, path, text):
    """With this text in the file at `path`."""
    before = path.read_text()
    path.write_text(text)
    try:
        check(root)
    finally:
        path.write_text(before)


def check(root):
    try:
        assert isinstance(read_dataset(root, cache="none"), Demonstrations)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_info(recorded, data):
    root, info = recorded
    read(root, root / "meta/info.json", json.dumps(data.draw(changed(info))))


@pytest.mark.parametrize("name", ["episodes.jsonl", "tasks.jsonl"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_lines(format_2, name, data):
    path = format_2 / "meta" / name
    rows = data.draw(changed([json.loads(line) for line in path.read_text().splitlines()]))
    read(format_2, path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["tasks.parquet", "episodes/chunk-000/file-000.parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_columns(format_3, name, data):
    """Other values of any type in the columns of meta/'s parquet files."""
    path = format_3 / "meta" / name
    before, table = path.read_bytes(), pq.read_table(path)
    column = data.draw(st.sampled_from(table.column_names))
    values = st.integers(-(2**62), 2**62) | st.floats() | st.none()
    kind = data.draw(st.sampled_from([values, st.text(max_size=3) | st.none(), st.integers(0, 3)]))
    row = data.draw(st.lists(kind, min_size=table.num_rows, max_size=table.num_rows))
    try:
        pq.write_table(replace(table, column, pa.array(row, from_pandas=False)), path)
        check(format_3)
    except pa.ArrowInvalid:  # integers and floats that no one column holds
        pass
    finally:
        path.write_bytes(before)
