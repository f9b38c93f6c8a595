"""The digest that says whether a record is up to date."""

from lib.bench.paths import repository
from lib.bench.records import source_digest as module
from lib.bench.records.import_graph import ImportGraph
from lib.bench.records.source_digest import code, source_digest


def test_only_code_counts():
    text = '"""Doc."""\n# comment\ndef f(a):\n    """What it does."""\n    return a + 1\n'
    same = "def f(a):\n    # why\n    return (a+1)\n"
    assert code(text) == code(same)
    assert code(same) != code(same.replace("a+1", "a+2"))
    assert code("x = 'a string'") != code("x = 'another'")
    assert code("def f():\n    'Doc.'") == code("def f():\n    'Other.'")
    assert code("%magic") == "%magic"


def test_the_digest_follows_the_script_and_what_it_imports(tmp_path, monkeypatch):
    (tmp_path / "lib/sub").mkdir(parents=True)
    for name in ("lib/__init__.py", "lib/sub/__init__.py"):
        (tmp_path / name).write_text("")
    used, unused = tmp_path / "lib/sub/used.py", tmp_path / "lib/sub/unused.py"
    used.write_text("x = 1\n")
    unused.write_text("x = 1\n")
    script = tmp_path / "02_toy.py"
    script.write_text("from lib.sub.used import x\nprint(x)\n")
    monkeypatch.setattr(module, "_graph", lambda root: ImportGraph(tmp_path))
    first = source_digest(script)
    assert first == source_digest(script)
    unused.write_text("x = 2\n")
    assert source_digest(script) == first
    used.write_text("x = 1  # why\n")
    assert source_digest(script) == first
    used.write_text("x = 2\n")
    changed = source_digest(script)
    assert changed != first
    script.write_text("from lib.sub.used import x\nprint(x, x)\n")
    assert source_digest(script) not in (first, changed)


def test_a_chapter_depends_on_its_own_part_of_the_library():
    graph = ImportGraph(repository())
    first = graph.closure((repository() / "chapters/01_forward_pass.py").read_text())
    assert "lib.engine.llm" in first
    assert "lib.loadtest.client" not in first
