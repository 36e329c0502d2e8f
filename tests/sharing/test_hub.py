"""Sharing through the real client, against a Hub on loopback with faults: it works, or it says why and nothing is broken."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub import environment, run_script
from hub_server import READER, TOKEN, serve_writable

import mmzoo
from mmzoo.testing import Sample, tiny

NAME = "me/tiny"
PICTURES = [example.image for example in Sample().load("test")]

# A process with the hub's address, that is asked one thing after another; each has an empty cache and its own token. It does
# not wait between tries, so that what is tried again is tried soon.
CLIENT = """
import json, os, sys, time
from pathlib import Path

from huggingface_hub import constants, get_session, set_client_factory

import mmzoo
import mmzoo.publish
from mmzoo.sharing import huggingface, locations
from mmzoo.errors import MmzooError

time.sleep = lambda seconds: None
first = get_session()
unlimited = {"timeout": None, "follow_redirects": True, "event_hooks": first.event_hooks}  # as the library's own client is
assert first.timeout.read is None

for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if asked["token"]:
        os.environ["HF_TOKEN"] = asked["token"]
    constants.HF_HUB_CACHE = asked["cache"]
    huggingface.TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = asked["timeout"]
    set_client_factory(lambda: type(first)(**unlimited))
    try:
        done = getattr(mmzoo, asked["call"])(*asked["arguments"], **asked["options"])
        plain = str if isinstance(done, Path) else lambda value: value.to_dict()
        answer = {"done": [plain(value) for value in done] if isinstance(done, list) else plain(done)}
    except MmzooError as error:
        answer = {"error": type(error).__name__, "said": str(error)}
    print("answer " + json.dumps(answer), flush=True)
"""

PREDICT = """
import json, sys
import mmzoo
from mmzoo.testing import Sample
pictures = [e.image for e in Sample().load("test")]
found = [mmzoo.load(sys.argv[1], revision=revision or None).predict(image=pictures) for revision in sys.argv[2:]]
print(json.dumps([[[p.label, p.score.hex()] for p in said] for said in found]))
"""


COMMANDS = """
import contextlib, io, json, sys
from mmzoo.cli import main
answers = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["mmzoo", *words]
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as end:
            code = end.code
    answers.append([code, out.getvalue()])
print(json.dumps(answers))
"""


def said(model):
    return [[p.label, p.score.hex()] for p in model.predict(image=PICTURES)]


class Client:
    def __init__(self, url, folder):
        self.url, self.folder, self.count = url, folder, itertools.count()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=environment(url, folder / "home"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "stderr").open("w"),
            text=True,
        )

    def ask(self, call, *arguments, token=TOKEN, cache=None, timeout=60.0, **options):
        cache = cache or self.folder / f"cache{next(self.count)}"
        arguments = [str(a) if isinstance(a, Path) else a for a in arguments]
        asked = {"call": call, "arguments": arguments, "options": options, "token": token, "cache": str(cache)}
        asked["timeout"] = timeout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("answer "):
                answer = json.loads(line.removeprefix("answer "))
                assert TOKEN not in json.dumps(answer)
                return answer
        raise AssertionError((self.folder / "stderr").read_text())

    def well(self, *arguments, **options):
        answer = self.ask(*arguments, **options)
        assert "done" in answer, answer
        return answer["done"]

    def refused(self, *arguments, **options):
        answer = self.ask(*arguments, **options)
        assert "error" in answer, answer
        return f"{answer['error']}: {answer['said']}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with serve_writable(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(autouse=True)
def no_faults(hub):
    yield
    hub.faults.clear()
    hub.before_commit = None


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    client = Client(hub.url, tmp_path_factory.mktemp("client"))
    yield client
    client.process.stdin.close()
    client.process.wait(10)
    assert TOKEN not in (client.folder / "stderr").read_text()


@pytest.fixture(scope="module")
def models():
    return [mmzoo.build(tiny("cnn-product-lstm"), seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return [model.save(folder / str(i)) for i, model in enumerate(models)]


@pytest.fixture
def pushed(hub, client, saved):
    """A repository of its own that holds the first model."""
    name = f"me/tiny{len(hub.repositories)}"
    return name, client.well("push", saved[0], name)["commit"]


def test_a_pushed_model_is_the_same_in_a_new_process_with_an_empty_cache(hub, client, models, saved, tmp_path):
    first = client.well("push", saved[0], NAME, tag="v1")
    second = client.well("push", saved[1], NAME)
    assert first["commit"] != second["commit"] == hub.head(NAME)
    assert set(hub.names(NAME)) == {".gitattributes", *first["sent"]}
    found = run_script(PREDICT, NAME, "", "v1", first["commit"], env=environment(hub.url, tmp_path, HF_TOKEN=""))
    assert found == [said(models[1]), said(models[0]), said(models[0])]
    offline = environment(hub.url, tmp_path, HF_HUB_OFFLINE="1")
    assert run_script(PREDICT, NAME, "", env=offline) == found[:1]


def test_unchanged_files_are_not_sent_again(hub, client, saved, pushed):
    name, commit = pushed
    hub.requests.clear()
    again = client.well("push", saved[0], name)
    assert (again["sent"], again["commit"]) == ([], commit)
    assert not hub.writes()
    changed = client.well("push", saved[1], name)
    assert changed["sent"] == ["mmzoo.json", "model.safetensors"]
    assert sum(request.path.endswith(f"/commit/{'main'}") for request in hub.writes()) == 1


def test_branches_and_pull_requests(hub, client, saved, pushed):
    name, commit = pushed
    branch = client.well("push", saved[1], name, revision="try/this")
    assert (hub.head(name), hub.head(name, "try/this")) == (commit, branch["commit"])
    asked = client.well("push", saved[1], name, create_pr=True)
    assert "/discussions/1" in asked["url"]
    assert hub.head(name) == commit
    folder = client.well("pull", f"{name}@try/this")
    assert (Path(folder) / "model.safetensors").read_bytes() == (saved[1] / "model.safetensors").read_bytes()


def test_a_private_repository_needs_a_token(hub, client, saved):
    client.well("push", saved[0], "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    assert client.well("pull", "me/secret", token=READER)
    assert "hf auth login" in client.refused("pull", "me/secret", token=None)
    assert "may see it" not in client.refused("pull", "me/secret", token=None)


def test_searching(client, saved):
    client.well("push", saved[0], "me/needle")
    found = client.well("search", "needle", encoder="cnn")
    assert [model["repo"] for model in found] == ["me/needle"]
    assert client.well("search", "needle", encoder="clip") == []


def test_a_private_push_to_a_public_repository_is_refused(client, saved, pushed):
    assert "is public" in client.refused("push", saved[1], pushed[0], private=True)


def test_pulling_to_a_folder(client, saved, pushed, tmp_path):
    name, _ = pushed
    folder = Path(client.well("pull", name, to=str(tmp_path / "to")))
    assert folder == tmp_path / "to"
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert {p.name for p in folder.iterdir()} == {p.name for p in saved[0].iterdir()}
    second = client.well("push", saved[1], name)["commit"]
    client.well("pull", name, revision=second, to=str(folder))
    assert (folder / "model.safetensors").read_bytes() == (saved[1] / "model.safetensors").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "no checkpoint" in client.refused("pull", name, to=str(tmp_path / "mine"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "to"]


def test_what_is_not_there(client, saved, pushed):
    assert "no such repository" in client.refused("pull", "me/nothing")
    assert "no revision 'v9'" in client.refused("pull", pushed[0], revision="v9")
    assert "owner/name" in client.refused("push", saved[0], "just-a-name")
    assert "no revision: name" in client.refused("pull", pushed[0], revision="../x")


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, "hf auth login"), (READER, "403.*write permission|hf auth login"), ("hf_nonsensetoken", "401.*hf auth login")],
)
def test_who_may_not_push(hub, client, saved, pushed, token, words):
    name, commit = pushed
    assert re.search(words, client.refused("push", saved[1], name, token=token))
    assert hub.head(name) == commit


def test_a_token_that_no_header_can_hold_is_not_shown(client, saved, pushed):
    said = client.refused("push", saved[1], pushed[0], token="hf_secret\x01secretsecret")
    assert "secretsecret" not in said


STEPS = [("POST", "/preupload/"), ("POST", "/info/lfs/"), ("PUT", "/upload/"), ("POST", "/commit/")]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1].strip("/"))
@pytest.mark.parametrize(
    "how", [{"status": 429}, {"status": 500}, {"status": 503}, {"cut": "before"}, {"cut": "middle"}], ids=str
)
def test_a_fault_that_passes_is_tried_again(hub, client, saved, pushed, step, how):
    name, commit = pushed
    shutil.rmtree(hub.objects)
    hub.objects.mkdir()
    hub.fail(*step, **how)
    done = client.well("push", saved[1], name)
    assert hub.head(name) == done["commit"] != commit
    assert "model.safetensors" in done["sent"]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1].strip("/"))
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"status": 403}, "403"),
        ({"status": 409}, "409"),
        ({"status": 412}, "412"),
        ({"status": 429}, "429"),
        ({"status": 500}, "fault"),
        ({"cut": "middle"}, "connection"),
    ],
    ids=str,
)
def test_a_fault_that_stays_leaves_the_old_commit(hub, client, saved, pushed, step, how, words):
    name, commit = pushed
    shutil.rmtree(hub.objects)
    hub.objects.mkdir()
    hub.fail(*step, times=999, **how)
    message = client.refused("push", saved[1], name)
    assert message.startswith("HubError")
    assert words in message
    assert hub.head(name) == commit
    hub.faults.clear()
    assert client.well("pull", name)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, client, saved, pushed):
    name, _ = pushed
    before = len(hub.repositories[name].commits)
    hub.fail("POST", "/commit/", cut="after")
    done = client.well("push", saved[1], name)
    assert len(hub.repositories[name].commits) == before + 1
    assert hub.head(name) == done["commit"]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1].strip("/"))
def test_a_slow_hub_is_waited_for(hub, client, saved, pushed, step):
    name, commit = pushed
    hub.fail(*step, slow=0.5)
    assert client.well("push", saved[1], name)["commit"] == hub.head(name) != commit


@pytest.mark.parametrize("step", [("GET", "/api/models/"), *STEPS], ids=lambda step: step[1].strip("/"))
def test_a_hub_that_does_not_answer_is_not_waited_for_for_ever(hub, client, saved, pushed, step):
    name, commit = pushed
    shutil.rmtree(hub.objects)
    hub.objects.mkdir()
    hub.fail(*step, hang=True, times=999)
    try:
        message = client.refused("push", saved[1], name, timeout=0.5)
        assert "does not answer in time" in message
    finally:
        hub.released.set()
        hub.released = threading.Event()
    assert hub.head(name) == commit
    hub.faults.clear()
    assert client.well("push", saved[1], name)["commit"] == hub.head(name)


def test_two_pushes_at_once(hub, client, saved, pushed):
    name, _ = pushed
    other = []

    def meanwhile():
        folder = hub.folder / "meanwhile" / name
        shutil.copytree(hub.repositories[name].folder("main")[1], folder)
        (folder / "note.txt").write_text("someone else's")
        other.append(hub.advance(name, folder, "main"))

    hub.before_commit = meanwhile
    assert "someone else pushed to 'main' meanwhile" in client.refused("push", saved[1], name)
    assert [hub.head(name)] == other
    client.well("push", saved[1], name)
    assert "note.txt" in hub.names(name)


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 503}, {"cut": "middle"}, {"cut": "before"}, {"slow": 0.3}], ids=str)
def test_a_download_that_is_cut_goes_on(hub, client, pushed, how):
    hub.fail("GET", r"/resolve/.*model\.safetensors", **how)
    answer = client.ask("pull", pushed[0])
    if "done" not in answer:  # the client tries some faults again, and others not
        assert answer["error"] == "HubError", answer
        answer = client.ask("pull", pushed[0])
    mmzoo.load(Path(answer["done"]))


def test_a_download_that_never_works_leaves_nothing_to_load(hub, client, pushed, tmp_path):
    hub.fail("GET", r"/resolve/.*model\.safetensors", cut="middle", times=999)
    cache = tmp_path / "cache"
    assert "connection" in client.refused("pull", pushed[0], cache=cache, to=str(tmp_path / "to"))
    assert not (tmp_path / "to").exists()
    hub.faults.clear()
    assert client.well("pull", pushed[0], cache=cache)


def test_a_hub_that_is_down_leaves_the_cache(hub, client, pushed, tmp_path):
    folder = client.well("pull", pushed[0], cache=tmp_path)
    hub.fail("GET", "/api/models/", status=503, times=999)
    hub.fail("HEAD", "/resolve/", status=503, times=999)
    assert client.well("pull", pushed[0], cache=tmp_path) == folder
    assert "fault" in client.refused("pull", pushed[0])


def test_a_file_that_was_damaged_in_the_cache_is_fetched_anew(client, pushed, tmp_path):
    folder = Path(client.well("pull", pushed[0], cache=tmp_path))
    blob = (folder / "model.safetensors").resolve()
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    client.well("pull", pushed[0], cache=tmp_path)
    assert (folder / "model.safetensors").read_bytes() == good


def test_a_file_that_was_truncated_in_the_cache_is_fetched_anew(client, pushed, tmp_path):
    folder = Path(client.well("pull", pushed[0], cache=tmp_path))
    blob = (folder / "model.safetensors").resolve()
    good = blob.read_bytes()
    blob.write_bytes(good[:100])
    client.well("pull", pushed[0], cache=tmp_path)
    assert (folder / "model.safetensors").read_bytes() == good


@pytest.mark.parametrize("to", [False, True])
def test_only_files_of_the_manifest_and_the_size_that_it_says_are_downloaded(hub, client, pushed, tmp_path, to):
    name, _ = pushed
    folder = hub.folder / "changed" / name
    shutil.copytree(hub.repositories[name].folder("main")[1], folder)
    (folder / "note.txt").write_text("not of the manifest")
    hub.advance(name, folder, "main")
    hub.requests.clear()
    options = {"to": str(tmp_path / "to")} if to else {}
    assert not (Path(client.well("pull", name, **options)) / "note.txt").exists()
    contents = {request.file for request in hub.requests if request.method == "GET" and request.file}
    assert contents == {path.name for path in folder.iterdir()} - {"note.txt", ".gitattributes"}
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    hub.requests.clear()
    assert re.search(
        r"model\.safetensors is \d+ bytes, \d+ were saved; it was not downloaded", client.refused("pull", name, **options)
    )
    assert {request.file for request in hub.requests if request.method == "GET" and request.file} <= {"mmzoo.json"}


def test_a_full_disk(client, pushed, tmp_path):
    """A file system of its own is not to be had here; the shell's limit on the size of a file gives the same error, EFBIG for
    ENOSPC."""
    code = (
        "import mmzoo, sys\ntry: mmzoo.pull(sys.argv[1], to=sys.argv[2])\nexcept mmzoo.errors.MmzooError as e: sys.exit(str(e))"
    )
    env = environment(client.url, tmp_path / "home", HF_TOKEN="")
    command = [
        "bash",
        "-c",
        'ulimit -f 4; trap "" XFSZ; exec "$@"',
        "-",
        sys.executable,
        "-c",
        code,
        pushed[0],
        str(tmp_path / "to"),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "to").exists()


@pytest.mark.slow
def test_the_command_line(hub, saved, tmp_path):
    env = environment(hub.url, tmp_path / "home", HF_TOKEN=TOKEN)

    def mmzoo_command(*words):
        return subprocess.run(
            [sys.executable, "-m", "mmzoo", *words], env=env, capture_output=True, text=True, timeout=120, check=False
        )

    done = mmzoo_command("push", str(saved[0]), "me/by-command", "--tag", "v1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["commit"] == hub.head("me/by-command")
    assert TOKEN not in done.stdout + done.stderr
    PICTURES[0].save(tmp_path / "p.png")
    done = mmzoo_command("predict", "me/by-command@v1", str(tmp_path / "p.png"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["label"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Pictures with answers that the tiny models have labels for."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i, picture in enumerate(PICTURES):
        picture.save(folder / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "question": "what?", "answer": f"label_{i % 2}"}))
    (folder / "test.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def measured(answers, tmp_path_factory):
    """A reader and a writer, each with scores."""
    folder = tmp_path_factory.mktemp("measured")
    for name, recipe in (("reader", "cnn-product-lstm"), ("writer", "cnn-prefix-gpt")):
        mmzoo.build(tiny(recipe), seed=0).save(folder / name)
        mmzoo.evaluate(folder / name, dataset=str(answers), progress=False)
    return folder


def the_words(where, revision, answers):
    """Commands that take a repository; ``where`` gives the name of one."""
    reader, writer = (f"{where(name)}@{revision}" for name in ("reader", "writer"))
    return [
        ["evaluate", reader, "--dataset", str(answers), "--json"],
        ["generate", writer, str(answers / "0.png"), "--max-new-tokens", "3", "--json"],
        ["card", reader],
        ["verify", reader, "--dataset", str(answers), "--json"],
        ["verify", writer, "--dataset", str(answers), "--json"],
    ]


def check_answers(found, measured, answers):
    record = json.loads((measured / "reader" / "run.json").read_text())["evaluations"][0]
    image = str(answers / "0.png")
    text = mmzoo.load(measured / "writer").generate(image=image, max_new_tokens=3)
    (evaluated, generated, card, *verified), codes = [out for _, out in found], [code for code, _ in found]
    assert codes == [0] * 5
    assert json.loads(evaluated)["scores"] == record["scores"]
    assert json.loads(generated) == [{"image": image, "text": text}]
    assert f"| accuracy | {record['scores']['accuracy']['value']:.4f} [" in card
    for said in map(json.loads, verified):
        assert said["reproduced"]
        assert re.fullmatch("[0-9a-f]{40}", said["commit"])


@pytest.mark.slow
def test_commands_take_a_repository_at_a_revision(hub, client, measured, answers, tmp_path):
    for name in ("reader", "writer"):
        client.well("push", measured / name, f"me/{name}", tag="v1")
    words = the_words(lambda name: f"me/{name}", "v1", answers)
    found = run_script(COMMANDS, json.dumps(words), env=environment(hub.url, tmp_path, HF_TOKEN=""))
    check_answers(found, measured, answers)


# The card


def read_card(hub, name):
    return (hub.repositories[name].folder("main")[1] / "README.md").read_text()


def test_a_pushed_card_says_where_the_model_is_and_is_taken_by_the_hub(hub, client, measured):
    hub.validated.clear()
    client.well("push", measured / "reader", "me/with-card")
    card = read_card(hub, "me/with-card")
    assert set(hub.validated) == {card}
    assert 'model = mmzoo.load("me/with-card")\n' in card
    assert "`mmzoo verify me/with-card`" in card
    assert "path/to" not in card
    # Pulled and pushed again, with words of one's own.
    folder = Path(client.well("pull", "me/with-card", to=str(client.folder / "mine")))
    (folder / "README.md").write_text(card + "\n## Our own words\n")
    client.well("push", folder, "me/with-words")
    assert read_card(hub, "me/with-words") == card.replace("me/with-card", "me/with-words") + "\n## Our own words\n"


def spoilt(measured, folder, old, new):
    shutil.copytree(measured / "reader", folder)
    path = folder / "README.md"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return folder


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("license: other\nlicense_name: listed-in-the-card", "license: mine-alone", '"license" must be one of'),
        ("license_name: listed-in-the-card\n", "", '"license_name" is required'),
        ("    metrics:\n", "    numbers:\n", "metrics"),
        ("library_name: mmzoo", "library_name: mmzoo\ndatasets: [/home/me/data]", '"datasets" with value'),
    ],
)
def test_a_card_that_the_hub_does_not_take_is_refused_before_anything_is_sent(
    hub, client, measured, pushed, tmp_path, old, new, words
):
    folder = spoilt(measured, tmp_path / "m", old, new)
    name, commit = pushed
    hub.requests.clear()
    for repo in (name, "me/not-made"):
        message = client.refused("push", folder, repo)
        assert re.search(f"HubError.*does not accept the card: .*{words}", message)
    assert (hub.head(name), "me/not-made" in hub.repositories) == (commit, False)
    assert {request.path for request in hub.writes()} <= {"/api/validate-yaml"}


@pytest.mark.parametrize("how", [{"status": 404}, {"status": 503}, {"cut": "before"}], ids=str)
def test_a_hub_that_cannot_check_a_card_takes_it(hub, client, measured, pushed, how):
    name, commit = pushed
    hub.fail("POST", "/validate-yaml", times=99, **how)
    for repo in (name, f"{name}-new"):
        done = client.well("push", measured / "reader", repo)
        assert done["commit"] == hub.head(repo) != commit
        assert "README.md" in done["sent"]
        assert "library_name: mmzoo" in read_card(hub, repo)
    assert "could not check the card" in (client.folder / "stderr").read_text()


def test_the_private_name_of_the_library_is_as_it_was_seen():
    """A commit asks the method that CommitApi replaces, and gives it what it takes."""
    import inspect

    from huggingface_hub import HfApi

    from mmzoo.sharing.private_names import CommitApi

    assert list(inspect.signature(HfApi._validate_yaml).parameters) == ["self", "content", "repo_type", "token"]
    assert "self._validate_yaml(" in inspect.getsource(HfApi.create_commit)
    assert "_validate_yaml" in vars(CommitApi)


def test_commands_take_a_repository_in_a_folder(measured, answers, tmp_path, monkeypatch):
    from command_line import run

    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    place = f"file://{tmp_path}/zoo/me"
    for name in ("reader", "writer"):
        mmzoo.push(measured / name, f"{place}/{name}", tag="v1")
    found = [[0, run(*words).stdout] for words in the_words(lambda name: f"{place}/{name}", "v1", answers)]
    check_answers(found, measured, answers)
    assert f'mmzoo.load("{place}/reader")' in (mmzoo.pull(f"{place}/reader") / "README.md").read_text()
