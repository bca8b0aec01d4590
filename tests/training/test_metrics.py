import json

import pytest

from paddlescience_gradnorm.training import load_metrics, save_metrics


def test_the_version_comes_first_and_everything_comes_back(tmp_path):
    path = tmp_path / "metrics.json"
    save_metrics(path, {"errors": {"u": 1e-3}, "diagnosis": []})
    assert path.read_text().startswith('{\n  "version": 1,\n') and path.read_text().endswith("}\n")
    assert load_metrics(path) == {"version": 1, "errors": {"u": 1e-3}, "diagnosis": []}


def test_a_file_of_0_1_0_has_no_version(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"seconds": 3.5}')
    assert load_metrics(path) == {"seconds": 3.5}


@pytest.mark.parametrize("version", [2, 0, "1", None, 10**40])
def test_another_version_is_refused(tmp_path, version):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"version": version}))
    with pytest.raises(ValueError, match=r"has version .* knows versions up to 1: update") as info:
        load_metrics(path)
    assert str(path) in str(info.value) and len(str(info.value)) < 400


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    save_metrics(path, {"a": 1})
    with pytest.raises(TypeError):
        save_metrics(path, {"a": object()})
    assert load_metrics(path) == {"version": 1, "a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
