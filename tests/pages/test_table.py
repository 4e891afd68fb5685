import pytest

from audiocraft.pages.table import format_table


def test_columns_line_up_and_numbers_go_right():
    lines = format_table([('extract', 12.34567), ('train', 100.0), ('page', None)], ['step', 'seconds']).split('\n')
    assert lines == ['step     seconds', '-------  -------', 'extract    12.35', 'train        100', 'page           -']


def test_no_rows():
    assert format_table([], ['step', 'seconds']).split('\n')[0] == 'step  seconds'


def test_a_short_row_is_refused_with_the_two_numbers():
    with pytest.raises(ValueError, match='1 cells but there are 2 headers'):
        format_table([('a',)], ['step', 'seconds'])
