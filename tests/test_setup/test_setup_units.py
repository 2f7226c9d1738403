"""Which names a C++ file defines, and how files are dealt out over units."""

import random
import re
from pathlib import Path

import pytest
from setup_units import Source, deal, defined_names, read_source, unit_text


@pytest.mark.parametrize('code, names', [
    ('template <typename T>\nstruct PreCalc { int pos1; T w1; };', {'PreCalc'}),
    ('template <class T>\ninline void add(T* address, const T& val) { *address += val; }',
     {'add/2'}),
    ('Tensor nms(Tensor boxes, float threshold);\nvoid f() { g(); }', {'f/0'}),
    ('void f(void) {}\nvoid f(std::pair<int> x) {}', {'f/0', 'f/1'}),
    ('typedef enum { SUM = 0, MEAN = 1 } reduce_t;', {'reduce_t'}),
    ('enum class Mode : int { A, B };', {'Mode'}),
    ('class Point2d : public Point { int x; Point2d() : x(0) {} };', {'Point2d'}),
    ('static const int kSize[] = {1, 2};\nint count = 3;', {'kSize', 'count'}),
    ('using Pair = std::pair<int, int>;\nusing namespace std;\nusing at::Tensor;', {'Pair'}),
    ('namespace functor {\nnamespace {\nstruct A { int f() { return 1; } };\n}\n}\nint b = 1;',
     {'A', 'b'}),
    ('extern "C" {\nint c(int x, int y) { if (x) { return y; } return x; }\n}', {'c/2'}),
    ('#define DECLARE(T) \\\n  struct T##Fake { int x; };\nvoid g() {}', {'g/0'}),
    ('// struct NotMe {};\n/* void notme() {} */\nconst char* text = "struct NotMe {";', {'text'}),
    ('REGISTER_DEVICE_IMPL(nms_impl, CPU, nms_cpu);\ntemplate struct functor::A<int>;', set()),
])
def test_names_at_file_level(code, names):
    assert defined_names(code) == names


def test_macros_and_opened_namespaces_are_seen(tmp_path):
    (tmp_path / 'a.cpp').write_text(
        '#ifndef min\n#  define min(a, b) ((a) < (b) ? (a) : (b))\n#endif\n// #define no\n'
        'using namespace std;\n')
    source = read_source(tmp_path, Path('a.cpp'))
    assert source.macros == ('min',) and source.opens_namespace


def make_sources(seed):
    """Random files, of which some define names that others define too."""
    draw = random.Random(seed)
    return [Source(Path(f'{number}.cpp'), draw.randint(100, 60_000),
                   frozenset(draw.sample('abcdefghijklmnop', draw.randint(0, 2))),
                   opens_namespace=draw.random() < .2) for number in range(draw.randint(1, 80))]


@pytest.mark.parametrize('seed', range(20))
def test_every_file_is_in_one_unit_and_no_two_in_it_clash(seed):
    sources = make_sources(seed)
    dealt = deal(sources, 3)
    assert sorted((s for unit in dealt for s in unit), key=str) == sorted(sources, key=str)
    for unit in dealt:
        names = [name for source in unit for name in source.names]
        assert len(names) == len(set(names))
        opens = [source.opens_namespace for source in unit]
        assert opens == sorted(opens)
    assert max(sources, key=lambda source: source.size) in dealt[0]
    assert dealt == deal(sources[::-1], 3)


def test_units_are_of_about_equal_size():
    sources = [Source(Path(f'{number}.cpp'), 1000 + 100 * number, frozenset())
               for number in range(60)]
    sizes = [sum(source.size for source in unit) for unit in deal(sources, 3)]
    assert max(sizes) - min(sizes) <= 7000


def test_no_more_units_than_files():
    assert len(deal([Source(Path('a.cpp'), 1, frozenset())], 3)) == 1


def test_a_unit_takes_back_the_macros_of_each_file():
    first = Source(Path('cpu/psamask.cpp'), 1, frozenset(), macros=('min', 'max'))
    second = Source(Path('nms.cpp'), 1, frozenset())
    text = unit_text([first, second], '../originals')
    assert re.findall(r'^#(\w+) (\S+)$', text, re.MULTILINE) == [
        ('include', '"../originals/cpu/psamask.cpp"'), ('undef', 'min'), ('undef', 'max'),
        ('include', '"../originals/nms.cpp"')]
