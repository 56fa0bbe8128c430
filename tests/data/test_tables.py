"""A table is read whole, or refused with all its faults."""

import os
from pathlib import Path

from dataset_tools import opened, refusal, sizes


def table(folder: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding)
    return path


def test_csv(photos: Path, tmp_path: Path) -> None:
    rows = [f"photos/{kind}/{index}.png,{kind.upper()}" for kind in ("cat", "dog") for index in range(10)]
    dataset = opened(csv=table(tmp_path, "\n".join(["path,label", *rows])))
    assert dataset.classes == ("CAT", "DOG")
    assert dataset.names[0] == "photos/cat/0.png"
    assert sum(sizes(dataset)) == 20
    outside = tmp_path / "tables"
    outside.mkdir()
    swapped = (row.split(",") for row in rows)
    lines = ["label;file", *(f"{label};../{path}" for path, label in swapped)]
    moved = table(outside, "\r\n".join(lines), encoding="utf-8-sig")
    again = opened(csv=moved, path_column="file")
    assert again.hashes == dataset.hashes
    assert all(os.path.isfile(path) for path in again.paths(range(20)))


def test_csv_with_splits(photos: Path, tmp_path: Path) -> None:
    words = ["train"] * 6 + ["val"] * 2 + ["Test"] * 2
    rows = [f"photos/{kind}/{i}.png,{kind},{words[i]}" for kind in ("cat", "dog") for i in range(10)]
    dataset = opened(csv=table(tmp_path, "\n".join(["path,label,fold", *rows])), split_column="fold")
    assert sizes(dataset) == [12, 4, 4]
    assert {dataset.names[index] for index in dataset.indices("test")} == {
        f"photos/{kind}/{index}.png" for kind in ("cat", "dog") for index in (8, 9)
    }


def test_csv_faults_are_all_named_with_their_lines(photos: Path, tmp_path: Path) -> None:
    text = (
        "path,label,split\nphotos/cat/0.png,cat,train\nphotos/cat/99.png,cat,train\nphotos/cat/0.png,dog,val\n\n"
        "photos/dog/1.png,,train\nphotos/dog/2.png,dog,trial\nphotos/dog/3.png,dog,\n,dog,test\n"
    )
    message = refusal(csv=table(tmp_path, text))
    for fault in (
        "line 3: no such file: photos/cat/99.png",
        "line 4: photos/cat/0.png was in line 2 already",
        "line 6: no label",
        "line 7: unknown split 'trial'",
        "line 8: no split",
        "line 9: no path",
    ):
        assert fault in message
    assert "6 rows" in message


def test_csv_headers_and_encodings(photos: Path, tmp_path: Path) -> None:
    row = "photos/cat/0.png,cat\n"
    assert "no column 'label'. Did you mean 'labels'?" in refusal(csv=table(tmp_path, f"path,labels\n{row}"))
    assert "It has: a, b" in refusal(csv=table(tmp_path, f"a,b\n{row}"))
    assert "UTF-16" in refusal(csv=table(tmp_path, f"path,label\n{row}", encoding="utf-16"))
    assert "no rows" in refusal(csv=table(tmp_path, "path,label\n"))
    assert "No such file" in refusal(csv=tmp_path / "absent.csv")
