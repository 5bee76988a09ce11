"""The manifest is a frozen record whose digest changes with every field."""

import hashlib

import pytest
from pydantic import ValidationError

from karat.trainer.data.disjoint import Overlap
from karat.trainer.data.manifest import FileRecord, Manifest, TokenRecord

MANIFEST = Manifest(
    source="corpus",
    rule="in words",
    files=(FileRecord(path="ä.txt", side="both", bytes=3, sha256="00"),),
    skipped=0,
    train_bytes=2,
    validation_bytes=1,
    train_sha256="01",
    validation_sha256="02",
    overlap=Overlap(64, 0, 0, 0, 1, 0.0),
)
CANONICAL = (
    '{"files":[{"bytes":3,"path":"\\u00e4.txt","sha256":"00","side":"both"}],'
    '"overlap":{"covered_bytes":0,"share":0.0,"shared_windows":0,"validation_bytes":1,"window":64,"windows":0},'
    '"python_version":null,"rule":"in words","skipped":0,"source":"corpus","train_bytes":2,'
    '"train_sha256":"01","validation_bytes":1,"validation_sha256":"02"}'
)


def test_the_digest_is_of_sorted_json_without_spaces() -> None:
    assert MANIFEST.canonical_json() == CANONICAL
    assert MANIFEST.digest == hashlib.sha256(CANONICAL.encode()).hexdigest()


@pytest.mark.parametrize("field", sorted(set(Manifest.model_fields) - {"files", "overlap", "tokens"}))
def test_each_field_is_in_the_digest(field: str) -> None:
    value = getattr(MANIFEST, field)
    other = value + 1 if isinstance(value, int) else f"{value}x"
    assert MANIFEST.model_copy(update={field: other}).digest != MANIFEST.digest


TOKENS = TokenRecord(
    kind="bpe",
    vocab=300,
    tokenizer_sha256="03",
    train_tokens=1,
    validation_tokens=1,
    train_tokens_sha256="04",
    validation_tokens_sha256="05",
)


@pytest.mark.parametrize("field", sorted(set(TokenRecord.model_fields) - {"kind"}))
def test_the_tokens_are_in_the_digest_with_all_that_is_known_of_them(field: str) -> None:
    value = getattr(TOKENS, field)
    other = TOKENS.model_copy(update={field: value + 1 if isinstance(value, int) else f"{value}x"})
    digests = {MANIFEST.model_copy(update={"tokens": tokens}).digest for tokens in (None, TOKENS, other)}
    assert len(digests) == 3


@pytest.mark.parametrize("tokens", [None, TOKENS])
def test_it_survives_a_round_trip(tokens: TokenRecord | None) -> None:
    manifest = MANIFEST.model_copy(update={"tokens": tokens})
    again = Manifest.model_validate_json(manifest.canonical_json())
    assert again == manifest
    assert isinstance(again.overlap, Overlap)


def test_it_is_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MANIFEST.skipped = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Manifest.model_validate({**MANIFEST.model_dump(), "extra": 1})
