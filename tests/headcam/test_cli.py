"""The command: exit statuses, one-line errors, and examples in --help that work as written."""

import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

import headcam
import headcam.cli
from headcam.cli import VERBS, main
from headcam.cli.options import Parser, config_path, shipped_configs, verb_parser
from headcam.errors import DecodeError, HeadcamError, InputError, MissingPackage, StorageError


def test_without_arguments_it_says_what_it_can_do(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert err == "" and all(f"  {verb} " in out for verb in VERBS)


def test_version(capsys):
    for word in ("--version", "-V"):
        assert main([word]) == 0
        assert capsys.readouterr().out == f"{headcam.__version__}\n"


def test_an_unknown_verb_is_named_with_those_that_exist(capsys):
    assert main(["trian"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("headcam: 'trian' is not a verb of headcam. Fix: use one of doctor, ")


@pytest.fixture
def verb(monkeypatch):
    """Function that makes the verb `x` do something."""

    def install(do) -> None:
        module = type(sys)("headcam_test_verb")
        module.main = do
        monkeypatch.setitem(sys.modules, "headcam_test_verb", module)
        monkeypatch.setitem(headcam.cli.VERBS, "x", ("headcam_test_verb", "does something"))

    return install


def raiser(error):
    def do(arguments):
        raise error

    return do


@pytest.mark.parametrize("kind", [InputError, DecodeError, MissingPackage, StorageError])
def test_an_error_of_ours_is_one_line_and_status_2(verb, capsys, kind):
    verb(raiser(kind("the thing\nis 7", "make it  8")))
    assert main(["x"]) == 2
    assert capsys.readouterr() == ("", "headcam: the thing is 7. Fix: make it 8\n")
    with pytest.raises(kind):  # with its traceback, where that is asked for, before or behind other words
        main(["x", "--traceback"])
    with pytest.raises(kind):
        main(["--traceback", "x"])


def test_a_bug_keeps_its_traceback(verb):
    verb(raiser(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        main(["x"])


def test_an_interrupt_is_one_line_and_status_130(verb, capsys):
    verb(raiser(KeyboardInterrupt()))
    assert main(["x"]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("headcam: interrupted") and err.count("\n") == 1


def test_status_and_arguments_pass_through(verb):
    given = []
    verb(lambda arguments: given.append(arguments) or 1)
    assert main(["x", "a", "--b=c", "--traceback"]) == 1
    assert given == [["a", "--b=c"]]


def test_python_m_headcam_shows_one_line_and_on_demand_a_traceback(tmp_path):
    words = [sys.executable, "-m", "headcam", "store", str(tmp_path / "no.parquet"), "--out", str(tmp_path / "s")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert re.match(r"headcam: .*no\.parquet does not exist\. Fix: .*\n$", done.stderr)
    done = subprocess.run([*words, "--traceback"], capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" in done.stderr and "InputError" in done.stderr


@pytest.mark.slow
def test_ctrl_c_in_training_is_status_130_and_the_same_command_goes_on(fit_config, tmp_path):
    """Lightning catches the interrupt and exits with 1; a script could not tell that from a failure."""
    run = tmp_path / "run"
    config = fit_config(data={"val": None}, trainer={"max_steps": 100_000})
    words = [sys.executable, "-m", "headcam", "fit", "--config", str(config), "--out", str(run)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "headcam: interrupted; the same command goes on where it stopped\n"


@pytest.mark.parametrize("name", VERBS)
def test_help_shows_an_example_whose_options_exist(name, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    examples = re.findall(rf"^ +(headcam {name}\b.*)$", text.partition("example:\n")[2], re.MULTILINE)
    assert examples, text[:400]
    if name == "fit":  # has Lightning's parser
        for example in examples:
            with pytest.raises(SystemExit) as stop:
                main([*shlex.split(example)[1:], "--print_config"])
            assert stop.value.code in (0, None)
        return

    class Parsed(Exception):
        pass

    parse = Parser.parse_args

    def parse_and_stop(self, arguments=None, *rest, **options):
        parse(self, arguments, *rest, **options)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", parse_and_stop)
    for example in examples:
        with pytest.raises(Parsed):
            main(shlex.split(example)[1:])


@pytest.mark.parametrize(
    "words, telling",
    [
        (["index"], "folder"),
        (["index", "x", "--out", "y", "--procesess=2"], "procesess"),
        (["index", "x", "--out", "y", "--processes=two"], "processes"),
        (["index", "x", "--out", "y", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["doctor", "extra"], "extra"),
    ],
)
def test_options_that_do_not_exist_or_fit_are_one_line(words, telling, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert telling in err and err.count("\n") == 1 and "--help" in err


def test_every_verb_takes_its_options_from_a_file(tmp_path):
    parser = verb_parser("x", "Does something.", "headcam x")
    parser.add_argument("--size", type=int, default=1)
    (tmp_path / "c.yaml").write_text("size: 7\nquiet: true\n")
    options = parser.parse_args(["--config", str(tmp_path / "c.yaml")])
    assert options.size == 7 and options.quiet
    assert parser.parse_args(["--config", str(tmp_path / "c.yaml"), "--size=8"]).size == 8
    (tmp_path / "c.yaml").write_text("sise: 7\n")
    with pytest.raises(InputError, match="sise"):
        parser.parse_args(["--config", str(tmp_path / "c.yaml")])


def test_config_names_mean_the_file_here_else_the_packaged_one(tmp_path, monkeypatch):
    name = "configs/ssl/mae_vits16.yaml"
    monkeypatch.chdir(tmp_path)
    assert name in shipped_configs()
    assert config_path(name) == config_path("ssl/mae_vits16.yaml") and config_path(name).is_file()
    (tmp_path / "configs" / "ssl").mkdir(parents=True)
    (tmp_path / name).write_text("mine: 1\n")
    assert config_path(name).read_text() == "mine: 1\n"
    with pytest.raises(InputError, match=f"config mae.yaml was not found. Fix: .*{name}"):
        config_path("mae.yaml")


def test_errors_are_what_python_calls_them():
    assert issubclass(InputError, ValueError) and issubclass(MissingPackage, ImportError)
    assert issubclass(StorageError, OSError) and issubclass(DecodeError, InputError)
    import pickle

    error = pickle.loads(pickle.dumps(InputError("a", "b")))  # they cross from workers
    assert isinstance(error, HeadcamError) and (error.problem, error.fix, str(error)) == ("a", "b", "a. Fix: b")
