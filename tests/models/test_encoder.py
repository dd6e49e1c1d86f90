import numpy as np
import pyarrow as pa
import pytest

from models.encoder import Encoder
from tests.models.synthetic import CATEGORICAL, NUMERIC, table


@pytest.fixture(scope="module")
def encoder():
    return Encoder.fit(table(), numeric=NUMERIC, categorical=CATEGORICAL)


def test_what_was_fitted_survives_json_to_the_last_bit(encoder):
    assert Encoder.from_json(encoder.to_json()) == encoder


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_null_nan_and_infinity_are_all_missing(encoder, kind):
    wind = [1.0, None, np.nan, np.inf, -np.inf]
    rows = table(5).set_column(4, "wind", pa.array(wind, kind))
    assert np.isnan(encoder.transform(rows)[0][:, 1]).tolist() == [False, True, True, True, True]


def test_one_absurd_value_does_not_move_the_scale(encoder):
    wind = next(column for column in encoder.numeric if column.name == "wind")
    assert wind.high < 100
    assert wind.scale < 15


def test_constant_and_empty_columns_have_a_finite_scale_and_no_mask(encoder):
    flat = [column for column in encoder.numeric if column.name in {"constant", "empty"}]
    assert [(c.low == c.high, c.scale, c.mask) for c in flat] == [(True, 1.0, False)] * 2


def test_a_mask_is_learned_only_where_training_saw_both_states(encoder):
    assert {c.name for c in encoder.numeric if c.mask} == {"wind"}


def test_unknown_rare_and_missing_categories_share_code_0(encoder):
    rows = pa.table(
        {**{n: [1.0] * 4 for n in NUMERIC}, "carrier": ["EV", "ZZ", None, "UA"], "route": ["R1", "R99999", None, "R2"]}
    )
    codes = encoder.transform(rows)[1]
    assert (codes[1:3] == 0).all()
    assert (codes[[0, 3]] > 0).all()
    assert codes.max() < max(encoder.cardinalities)


def test_a_category_that_comes_as_a_dictionary_has_the_same_codes(encoder):
    rows, given = table(50, seed=3), table(50, seed=3)
    for name in CATEGORICAL:
        given = given.set_column(given.column_names.index(name), name, given[name].dictionary_encode())
    parts = pa.concat_tables([given.slice(7), given])  # each with a dictionary of its own
    assert (encoder.transform(parts)[1][43:] == encoder.transform(rows)[1]).all()


def test_numbers_beyond_float32_stay_finite(encoder):
    rows = table(1).set_column(3, "hour", pa.array([1e300]))
    assert np.isfinite(encoder.transform(rows)[0][0, 0])


def test_missing_columns_are_named(encoder):
    with pytest.raises(ValueError, match="carrier, wind"):
        encoder.transform(table(5).drop_columns(["wind", "carrier"]))


def test_a_retyped_column_is_named(encoder):
    with pytest.raises(ValueError, match="column hour: expected numbers"):
        encoder.transform(table(2).set_column(3, "hour", pa.array(["noon", "dusk"])))


def test_no_rows_are_encoded_as_no_rows(encoder):
    numbers, codes = encoder.transform(table(5).slice(0, 0))
    assert (numbers.shape, codes.shape) == ((0, len(NUMERIC)), (0, len(CATEGORICAL)))


@pytest.mark.parametrize("text", ["{}", '{"numeric": [{}], "categorical": []}', "not json"])
def test_text_that_is_no_encoder_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 (JSON's own words for the last)
        Encoder.from_json(text)


def test_statistics_that_cannot_be_are_refused(encoder):
    with pytest.raises(ValueError, match="not an encoder"):
        Encoder.from_json(encoder.to_json().replace('"scale": 1.0', '"scale": 0.0'))
