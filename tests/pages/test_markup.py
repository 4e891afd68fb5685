from audiocraft.pages.markup import Html, join, tag


def test_text_and_attributes_are_escaped():
    assert tag('p', '<b>&"') == '<p>&lt;b&gt;&amp;&quot;</p>'
    assert tag('a', 'x', href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;">x</a>'


def test_children_nest_without_a_second_escape():
    assert tag('ul', [tag('li', 'a & b'), None, (tag('li', 2),)]) == '<ul><li>a &amp; b</li><li>2</li></ul>'
    assert join('<', Html('<hr>')) == '&lt;<hr>'


def test_attributes_true_false_none_and_names():
    assert tag('video', controls=True, loop=False, src=None, class_='x', data_seconds=2.0) \
        == '<video controls class="x" data-seconds="2.0"></video>'
    assert tag('img', alt='') == '<img alt="">'
