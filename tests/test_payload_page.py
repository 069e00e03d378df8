"""``docs/payload.md`` agrees with the code: a payload is read here by nothing but its tables."""

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from doc_pages import BLOCKS, ROOT
from scouts import IMAGES, made_up

from codec import (
    SAMPLE_CODECS,
    CodecOptions,
    DecodeLimits,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
)
from codec.coding import cursor
from codec.gradients import COMPRESSORS, frame
from codec.learning import scout_bytes
from codec.messages import REQUESTS, Reply
from codec.options import OneOf
from codec.samples import payload as payload_module
from codec.samples.block_dct.codec import Plan
from codec.samples.options import AUTO
from codec.samples.payload import SECTIONS
from codec.samples.quantizer import QUANTIZERS
from codec.samples.spec import DTYPES, READABLE, VERSION
from codec.samples.spread import COARSEST, FINEST, MOST_HALVINGS
from sim import message_tables

PAGE = (ROOT / "docs" / "payload.md").read_text(encoding="utf-8")

Row = dict[str, str]


# Tables


def table(name: str) -> list[Row]:
    """The rows of a table of the page by the titles of its columns, code marks taken off."""
    found = re.search(rf"<!-- table: {name} -->\n((?:\|.*\n)+)", PAGE)
    assert found, f"no table {name}"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()]
    titles, _, *rows = cells
    return [
        {title: cell.replace("`", "") for title, cell in zip(titles, row, strict=True)}
        for row in rows
    ]


def column(name: str, title: str) -> list[str]:
    return [row[title] for row in table(name)]


def test_codec_identifiers() -> None:
    rows = table("codecs")
    shown = {row["codec"]: int(row["identifier"]) for row in rows}
    assert shown == {name: codec.identifier for name, codec in SAMPLE_CODECS.items()}
    for row in rows:
        codec = SAMPLE_CODECS[row["codec"]]
        assert row["options in the header"] == (", ".join(codec.uses) or "none")
        assert row["lossless"] == ("yes" if codec.lossless else "no")


def test_auto_stands_in_requests_with_all_options() -> None:
    assert "Identifier 0 is `auto`" in PAGE
    assert "followed by all eight options" in PAGE
    assert CodecOptions(AUTO).to_bytes()[0] == 0
    assert len(column("options", "option")) == 8


def test_codec_options() -> None:
    declared = {f.name: f for f in fields(CodecOptions) if f.name != "codec"}
    rows = table("options")
    assert [row["option"] for row in rows] == list(declared)
    sizes = {int: "varint", float: "float32", str: "byte"}
    for row in rows:
        option = declared[row["option"]]
        assert row["size"] == sizes[option.type]  # type: ignore[index]
        assert row["default"] == str(option.default)
        assert row["legal"] == str(option.metadata["legal"])


def test_options_are_the_same_in_both_tables() -> None:
    fields_table = {row["field"]: row for row in table("fields")}
    for row in table("options"):
        assert fields_table[row["option"]]["size"] == row["size"]
        users = [name for name, codec in SAMPLE_CODECS.items() if row["option"] in codec.uses]
        shown = fields_table[row["option"]]["present"]
        assert (shown == "lossy image files") == (len(users) > 2)
        assert len(users) > 2 or shown == ", ".join(users)


def test_numbers_of_names() -> None:
    fields_table = {row["field"]: row for row in table("fields")}
    relative = CodecOptions.__dataclass_fields__["relative_to"].metadata["legal"]
    for field, names in (("quantizer", QUANTIZERS), ("dtype", DTYPES), ("relative_to", relative)):
        numbered = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        assert fields_table[field]["meaning"].endswith(numbered)
    assert fields_table["version"]["legal values"] == f"{min(READABLE)} or {VERSION}"
    assert payload_module.MAGIC.hex(" ") in fields_table["magic"]["meaning"]


def test_legal_values_of_the_spec() -> None:
    legal = {row["field"]: row["legal values"] for row in table("fields")}
    declared = {f.name: f.metadata.get("legal") for f in fields(SampleSpec)}
    assert legal["classes"] == f"0 to 2^{declared['classes'].high.bit_length() - 1}"  # type: ignore[union-attr]
    size = declared["target_size"].high  # type: ignore[union-attr]
    assert legal["target size"].startswith(f"0 to 2^{size.bit_length() - 1};")
    assert legal["low"] == f"{declared['low'].low:g} to {declared['low'].high:g}".replace("+", "")  # type: ignore[union-attr]
    limits, text = DecodeLimits(), " ".join(PAGE.split())
    assert f"at most 2^{limits.samples.bit_length() - 1} samples" in text
    assert f"at most 2^{limits.values.bit_length() - 1} numbers" in text


def test_section_identifiers() -> None:
    assert [(int(r["identifier"]), r["section"]) for r in table("sections")] == list(
        enumerate(SECTIONS)
    )


OPTIONS = CodecOptions(quantizer="dithered", block=200, step=0.25, relative_to="range")
SPECS = {
    "dct": SampleSpec((3, 9, 200), classes=300),
    "dct, dithered": SampleSpec((2, 250), "float32", -1, 1, 0, 130, OPTIONS),
    "columns": SampleSpec((1, 2, 3, 4), classes=2),
    "single floats": SampleSpec((9, 7)),
    "tokens": SampleSpec((20,), "int32", 0, 30_000, 10),
    "columns, dithered": SampleSpec((300,), classes=2, codec=OPTIONS),
    **{name: SampleSpec((3, 8, 8), classes=10, codec=CodecOptions(name)) for name in SAMPLE_CODECS},
}


def made(spec: SampleSpec, count: int = 3) -> bytes:
    """A payload with three sections, as far as they are not empty."""
    rng = np.random.default_rng(0)
    samples = rng.uniform(spec.low, spec.high, (count, *spec.shape)).astype(spec.dtype)
    targets: Any = rng.integers(0, max(1, spec.classes), count)
    if not spec.classes:
        targets = rng.normal(size=(count, *spec.target_shape)).astype(np.float32)
    inclusion = np.arange(1, count + 1)
    return encode_samples(
        samples, targets, spec, key=(2**40, 300, 7), inclusion=inclusion
    ).to_bytes()


def read_by_table(data: bytes) -> dict[str, Any]:
    """Decode a payload by nothing but the tables of the page."""
    codecs = {int(row["identifier"]): row for row in table("codecs")}
    sections = {int(row["identifier"]): row["section"] for row in table("sections")}
    reader, values = cursor.Reader(data), {}
    lengths: dict[str, int] = {}
    rows = iter(table("fields"))
    for row in rows:
        field, present = row["field"], row["present"]
        used = (
            codecs[values["codec"]]["options in the header"].split(", ")
            if "codec" in values
            else []
        )
        if field == "section":
            following = next(rows)
            assert (present, following["present"]) == ("per section", "per section")
            for _ in range(values["number of sections"]):
                identifier = read_field(reader, row["size"], values)
                lengths[sections[identifier]] = read_field(reader, following["size"], values)
        elif field == "section bytes":
            values["sections"] = {name: reader.take(n, name) for name, n in lengths.items()}
        elif (
            present == "always"
            or (
                present == "dithered"
                and "quantizer" in used
                and QUANTIZERS[values["quantizer"]] == "dithered"
            )
            or (field in column("options", "option") and field in used)
        ):
            values[field] = read_field(reader, row["size"], values)
    reader.finish()
    return values


def read_field(reader: cursor.Reader, size: str, values: Mapping[str, Any]) -> Any:
    readers: dict[str, Callable[[], Any]] = {
        "byte": lambda: reader.byte("field"),
        "varint": lambda: reader.varint("field"),
        "2 bytes": lambda: reader.take(2, "field"),
        "4 bytes": lambda: reader.take(4, "field"),
        "float32": lambda: reader.number("field"),
        "uint32": lambda: struct.unpack("<I", reader.take(4, "field"))[0],
        "varint, once per axis": lambda: tuple(
            reader.varint("field") for _ in range(values["axes"])
        ),
    }
    return readers[size]()


@pytest.mark.parametrize("name", SPECS)
def test_a_payload_is_read_by_the_table_of_fields(name: str) -> None:
    spec = SPECS[name]
    if name.startswith("jpeg-xl"):
        pytest.importorskip("imagecodecs")
    data = made(spec)
    values = read_by_table(data)
    expected = SamplePayload.from_bytes(data)
    assert values["magic"] == payload_module.MAGIC
    assert values["CRC-32"] == zlib.crc32(data[:-4])
    assert values["codec"] == spec.sample_codec.identifier
    for option in spec.sample_codec.uses:
        value = getattr(spec.codec, option)
        legal = CodecOptions.__dataclass_fields__[option].metadata["legal"]
        assert values[option] == (legal.index(value) if isinstance(legal, OneOf) else value)
    assert DTYPES[values["dtype"]] == spec.dtype
    assert (values["axes"], values["shape"]) == (len(spec.shape), spec.shape)
    assert (values["low"], values["high"]) == (spec.low, spec.high)
    assert (values["classes"], values["target size"]) == (spec.classes, spec.target_size)
    assert values["count"] == expected.count == 3
    assert values["sections"] == expected.sections and len(values["sections"]) == 3
    if "seed" in values:
        assert (values["seed"], values["client"], values["payload"]) == (2**40, 300, 7)
    assert ("seed" in values) == name.endswith("dithered")


@pytest.mark.parametrize("name", ["dct", "columns, dithered", "jpeg"])
def test_fields_have_the_names_that_the_decoder_gives_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made(SPECS[name])
    read: list[str] = []
    take = cursor.Reader.take

    def recorded(self: cursor.Reader, size: int, what: str) -> bytes:
        read.append(what)
        return take(self, size, what)

    monkeypatch.setattr(cursor.Reader, "take", recorded)
    SamplePayload.from_bytes(data)
    named = list(dict.fromkeys(what for what in read if what not in SECTIONS))
    shown = column("fields", "field")
    assert named == [field for field in shown if field in named]
    skipped = set(shown) - set(named)
    optional = {row["field"] for row in table("fields") if row["present"] != "always"}
    assert skipped <= optional | {"CRC-32"}  # which the decoder cuts off first


# The dissected payloads


def dissected(name: str) -> list[tuple[bytes, str]]:
    """The bytes of each line of a dissection, and what is said of them."""
    found = re.search(rf"<!-- dissected: {name} -->\n```\n(.*?)```", PAGE, re.S)
    assert found, f"no dissection of {name}"
    parts, position = [], 0
    for line in found[1].splitlines():
        at, hexadecimal, note = re.fullmatch(
            r" *(\d+)  ((?:[0-9a-f]{2} ?)+)(?: +(\S.*))?", line
        ).groups()  # type: ignore[union-attr]
        assert int(at) == position, f"{line}: offset {position}"
        data = bytes.fromhex(hexadecimal)
        position += len(data)
        if note:
            parts.append((data, note))
        else:
            parts[-1] = (parts[-1][0] + data, parts[-1][1])
    return parts


@pytest.mark.parametrize("name", ["table", "labels", "nothing"])
def test_the_dissected_payload_is_the_golden_one(name: str) -> None:
    from test_payload import golden

    data = b"".join(part for part, _ in dissected(name))
    assert data == golden(name).to_bytes()


def test_the_dissected_payload_is_that_of_the_block_above() -> None:
    [block] = [b for b in BLOCKS if (b.page.name, b.language) == ("payload.md", "python")]
    names: dict[str, Any] = {}
    exec(block.text, names)
    assert b"".join(part for part, _ in dissected("table")) == names["payload"]


@pytest.mark.parametrize("name", ["table", "labels", "nothing"])
def test_every_part_of_the_dissection_says_what_it_is(name: str) -> None:
    parts = dissected(name)
    values = read_by_table(b"".join(part for part, _ in parts))
    notes = [note.split(":")[0] for _, note in parts]
    inside = [note for note in notes if "," in note]  # within a section
    header = [note for note in notes if note not in inside and not note.startswith("CRC-32")]
    shown = [field for field in column("fields", "field") if field in header]
    assert list(dict.fromkeys(header)) == shown
    assert {note.split(",")[0] for note in inside} == set(values["sections"])
    said = {note.split(":")[0]: note.split(": ")[1] for _, note in parts}
    assert said[f"CRC-32 of the {sum(len(part) for part, _ in parts) - 4} bytes above"] == (
        f"{values['CRC-32']:#x}"
    )
    fields_said = ("version", "codec", "quantizer", "relative_to", "dtype", "axes", "count")
    for field in (*fields_said, "target size"):
        assert said[field].split(",")[0] == str(values[field])
    for field in ("step", "low", "high"):
        assert float(said[field]) == pytest.approx(values[field])
    assert said["shape"] == str(values["shape"])
    assert said["classes"].split(" = ")[-1] == str(values["classes"])


def test_the_dissected_sections_are_as_said() -> None:
    said = {note: data for data, note in dissected("table")}
    data = b"".join(said.values())
    decoded = decode_samples(SamplePayload.from_bytes(data))
    assert decoded.targets.tolist() == [n * n for n in range(12)]
    assert said["targets, ascending: 1, so differences follow"] == b"\1"
    assert (1000 - 1).bit_length() == 10
    steps = np.round((decoded.samples + 1) / 0.02).astype(int)
    assert (int(steps.min()), int(steps.max()).bit_length()) == (0, 7)


# The plan of dct, and the steps of columns


PLANS = [
    "photographs",
    "faint",
    "weak band",
    "bands",
    "grey",
    "channels last",
    "channels",
    "signal",
]


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_what_the_page_says(name: str) -> None:
    from test_payload import golden

    payload = golden(name)
    spec, reader = payload.spec, cursor.Reader(payload.sections["values"])
    axis, first = divmod(reader.byte("channel axis"), 64)
    shape = spec.shape
    coded = {0: shape, 1: (1, *shape), 2: (shape[-1], *shape[:-1])}[axis]
    one_for_all = len(coded) == 3 and coded[0] in (1, 3) and first != 63
    rest = 0 if one_for_all else 3 if first == 63 else coded[0] - 1
    exponents = [*([] if first == 63 else [first]), *(reader.byte("spread") for _ in range(rest))]
    centres = [reader.zigzag("centre") if k else 0 for k in exponents]
    mixed = len(coded) == 3 and 4 <= coded[0] <= 32
    mix = np.frombuffer(reader.take(coded[0] ** 2 if mixed else 0, "mix"), np.int8) / 127
    assert max(exponents) <= 60 and (not mixed or abs(np.linalg.det(mix.reshape(13, 13))) > 0.5)

    plan = Plan.read(cursor.Reader(payload.sections["values"]), spec)
    assert (plan.axis, plan.stretch.exponents) == (axis, tuple(exponents))
    x = np.random.default_rng(0).uniform(spec.low, spec.high, (2, *coded)).astype(np.float32)
    lines = (-1, *[1] * (len(coded) - 1))
    gain = 2.0 ** (np.array(exponents).reshape(lines) / 2)
    width, middle = spec.high - spec.low, (spec.low + spec.high) / 2
    stretched = gain * (x - middle) - np.array(centres).reshape(lines) * width
    if mixed:
        left, _, right = np.linalg.svd(mix.reshape(13, 13))
        stretched = np.einsum("kc,nc...->nk...", left @ right, stretched)
    np.testing.assert_allclose(plan.stretch.forward(x), stretched, rtol=1e-4, atol=1e-4 * width)


def test_legal_values_of_plans_and_columns() -> None:
    assert f"0 to {MOST_HALVINGS}, or 63" in PAGE
    assert f"-2^{MOST_HALVINGS // 2} to 2^{MOST_HALVINGS // 2}" in PAGE
    assert f"each e is {FINEST} to {COARSEST}" in PAGE


# The gradient frame


GRADIENT = [np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30), np.ones(3, np.float32)]


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_gradient_frame_is_read_by_its_table(name: str) -> None:
    compressor = COMPRESSORS[name]()
    data, _ = compressor.compress(GRADIENT, None, np.random.default_rng(0))
    reader = cursor.Reader(data)
    rows = table("frame")
    fields_shown = [row["field"] for row in rows]
    assert fields_shown == [
        "magic", "version", "compressor", "number of tensors", "dimensions", "shape",
        "number of parameters", "parameter", "number of sections", "section length",
        "section bytes", "CRC-32",
    ]  # fmt: skip
    sizes = {row["field"]: row["size"] for row in rows}
    assert sizes["magic"] == "4 bytes" and reader.take(4, "magic") == frame.MAGIC
    assert frame.MAGIC.hex(" ") in rows[0]["meaning"]
    assert sizes["version"] == sizes["compressor"] == "byte"
    assert reader.byte("version") == frame.VERSION == int(rows[1]["legal values"])
    assert reader.byte("compressor") == compressor.identifier
    assert all(size.startswith("varint") for size in list(sizes.values())[3:10])
    shapes = [
        tuple(reader.varint("shape") for _ in range(reader.varint("dimensions")))
        for _ in range(reader.varint("number of tensors"))
    ]
    assert shapes == [part.shape for part in GRADIENT]
    parameters = [reader.varint("parameter") for _ in range(reader.varint("parameters"))]
    lengths = [reader.varint("length") for _ in range(reader.varint("sections"))]
    reader.take(sum(lengths), "section bytes")
    assert struct.unpack("<I", reader.take(4, "CRC-32"))[0] == zlib.crc32(data[:-4])
    reader.finish()

    [row] = [row for row in table("compressors") if row["compressor"] == name]
    assert int(row["identifier"]) == compressor.identifier
    shown = [] if row["parameters"] == "none" else row["parameters"].split(", ")
    assert len(shown) == len(parameters)
    assert len(row["sections"].split("; ")) == len(lengths)


def test_all_compressors_are_in_the_table() -> None:
    assert set(column("compressors", "compressor")) == set(COMPRESSORS)


# Messages


@pytest.mark.parametrize("change", [False, True])
def test_a_scout_is_read_by_its_table(change: bool) -> None:
    scout, base = made_up(), made_up(seed=1)
    data = scout_bytes.to_bytes(scout, base if change else None)
    reader, sizes = cursor.Reader(data), {"byte": 1, "4 bytes": 4, "8 bytes": 8, "uint32": 4}
    sizes |= {"the rest": 0, "varint": 0, "float32": 4}
    read: dict[str, list[Any]] = {}
    form = "change" if change else "whole"
    rows = [row for row in table("scout") if row["present"] in ("always", form)]
    times = {"axis": "axes", "layer": "layers"}
    skipped = 0
    for place, row in enumerate(rows):
        if skipped:  # it was read with the field that it follows
            skipped -= 1
            continue
        size, _, per = row["size"].partition(", ")
        group = [row]
        if per == "per layer":
            group.append(rows[place + 1])
            skipped = 1
        unit = per.split()[-1] if per else ""
        count = IMAGES.channels if unit == "channel" else 1
        count = read[times[unit]][0] if unit in times else count
        for _ in range(count):
            for one in group:
                name = one["field"]
                if size == "varint":
                    value: Any = reader.varint(name)
                elif size == "float32":
                    value = reader.number(name)
                elif size == "the rest":
                    value = reader.take(reader.left - 4, name)
                else:
                    value = reader.take(sizes[size], name)
                    value = value[0] if size == "byte" else value
                read.setdefault(name, []).append(value)
    reader.finish()
    assert read["magic"] == [scout_bytes.MAGIC]
    assert scout_bytes.MAGIC.hex(" ") in rows[0]["meaning"]
    assert read["version"] == [scout_bytes.VERSION] == [int(rows[1]["legal values"])]
    assert read["form"] == [int(change)]
    if change:
        assert read["digest"] == [scout_bytes.digest(scout_bytes.to_bytes(base))]
        return
    plan = scout.plan
    assert read["layout"] == [plan.layout] and tuple(read["shape"]) == plan.shape
    assert tuple(zip(read["stride"], read["outputs"], strict=True)) == plan.layers
    assert np.array_equal(read["factor"], scout.factor)
    assert np.allclose(read["centre"], scout.centre)


def test_tables_of_messages_are_those_of_the_fields() -> None:
    assert message_tables.with_tables(PAGE) == PAGE, "run python -m sim.message_tables"


def test_a_table_of_messages_has_every_entry_that_travels() -> None:
    rendered = message_tables.tables()
    for mode, kind in REQUESTS.items():
        required: dict[str, Any] = {"server_round": 1}
        required |= {"learning_rate": 0.1} if mode == "fedavg" else {}
        required |= {"compression": "fp32"} if mode == "gradient" else {}
        entries = kind(**required).to_entries()
        part = rendered.split(f"**Request `{mode}`**")[1].split("**")[0]
        shown = re.findall(r"^\| `([\w-]+)` \|", part, re.M)
        assert set(entries) <= set(shown)
        # not told: left out
        untold = {"acknowledged", "bank", "curve-of", "scout", "updates", "versions"}
        assert set(shown) - set(entries) <= untold


def test_all_replies_are_in_the_tables() -> None:
    assert {kind for kind, _ in message_tables.REPLIES} == set(Reply.__subclasses__())
