import kaggle_server as fake
import pytest
import stages


@pytest.fixture(scope="session")
def built(competition, tmp_path_factory):
    """The project, with its state before and its files after each stage."""
    project = stages.Project(tmp_path_factory.mktemp("faults"))
    (project.root / "home" / ".kaggle").mkdir()
    key = project.root / "home" / ".kaggle" / "kaggle.json"
    key.write_text(f'{{"username": "{fake.USER}", "key": "{fake.KEY}"}}')
    key.chmod(0o600)
    with fake.serving() as server:
        ask(project, server)
        stages.build(project, competition)
    return project


def ask(project: stages.Project, server: fake.KaggleServer) -> None:
    """Let the project's commands ask `server` in place of Kaggle."""
    server.polls_until_scored = 0
    project.env |= {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": server.url, "http_proxy": server.url}
    project.env |= {"HTTPS_PROXY": "http://127.0.0.1:9"}


@pytest.fixture
def server():
    with fake.serving() as server:
        yield server


@pytest.fixture
def project(built, server):
    """The project, with a Kaggle of its own."""
    ask(built, server)
    return built


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item, call):
    """Put the counts of a test into its report, which may come from another process."""
    if call.when == "call":
        item.user_properties += [("fault", (*key, n, stages.lost[key])) for key, n in stages.tried.items()]
        stages.tried.clear()
        stages.lost.clear()
