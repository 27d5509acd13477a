//! The packages for other languages, as those who use them meet them: built around the binary, installed where nothing
//! else of ours is, and used by projects under the test runners of these languages. What is said of each package in
//! detail is in those projects, `relay-client/python/tests` and `relay-client/npm/tests`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use relay_tests::tools::{self, output};
use relay_tests::{World, process};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

/// A file or directory of the client's sources.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../relay-client").join(name).canonicalize().unwrap()
}

/// A program that sees nothing of the developer's own settings, working in `directory`.
async fn program(path: impl AsRef<Path>, home: &TempDir, directory: impl AsRef<Path>) -> Command {
    let mut command = process::command(path.as_ref().to_str().unwrap(), home.path()).await;
    // Where a directory of the sources is used as it is, nothing is left in it.
    command.current_dir(directory).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

#[tokio::test]
async fn python_projects_use_the_wheel() {
    let world = World::start().await;
    let home = tempfile::tempdir().unwrap();
    let (package, python) = (source("python"), tools::python().as_std().get_program().to_owned());

    let mut build = program(package.join("build"), &home, &package).await;
    let dist = home.path().join("dist");
    build.arg("--binary").arg(process::binary("relay").await).arg("--out").arg(&dist).env("PYTHON", &python);
    output(&mut build).await;
    let wheels: Vec<_> = std::fs::read_dir(dist).unwrap().map(|file| file.unwrap().path()).collect();
    let [wheel] = &wheels[..] else { panic!("not one wheel: {wheels:?}") };
    let beginning = concat!("relay_tunnel-", env!("CARGO_PKG_VERSION"), "-py3-none-");
    assert!(wheel.file_name().unwrap().to_str().unwrap().starts_with(beginning), "{wheels:?}");

    let environment = home.path().join("environment");
    output(program(&python, &home, &package).await.args(["-m", "venv", "--without-pip"]).arg(&environment)).await;
    let own = environment.join("bin/python");
    // The tools are lent to the new environment, because nothing is downloaded here.
    let site = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let lender = output(program(&python, &home, &package).await.args(["-c", site])).await;
    let borrower = output(program(&own, &home, &package).await.args(["-c", site])).await;
    std::fs::write(Path::new(borrower.trim()).join("tools.pth"), lender).unwrap();
    let mut pip = program(&own, &home, &package).await;
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]);
    output(pip.arg(wheel)).await;

    let way = json!({
        "relay": world.relay_url(),
        "relay_addr": world.https().to_string(),
        "ca_file": world.ca_file(),
        "token": world.token().await,
    });
    let mut pytest = program(&own, &home, &package).await;
    pytest.args(["-m", "pytest", "--quiet", "--numprocesses", "4", "-p", "no:cacheprovider"]);
    let said =
        output(pytest.arg("--basetemp").arg(home.path().join("pytest")).env("TEST_RELAY", way.to_string())).await;
    assert!(said.contains(" passed in ") && !said.contains("skipped"), "{said}");
    let mut mypy = program(&python, &home, &package).await;
    output(mypy.args(["-m", "mypy", "--cache-dir"]).arg(home.path().join("mypy"))).await;
}

#[tokio::test]
async fn node_projects_use_the_packages() {
    let world = World::start().await;
    let home = tempfile::tempdir().unwrap();
    let package = source("npm");
    let (node, npm) = (tools::program("node"), tools::program("npm"));
    let platform =
        output(program(&node, &home, &home).await.args(["-p", "process.platform + '-' + process.arch"])).await;

    let mut build = program(package.join("build"), &home, &package).await;
    let binary = format!("{}={}", platform.trim(), process::binary("relay").await.display());
    let packed = output(build.arg("--out").arg(home.path()).arg(binary)).await;
    let version = concat!("-", env!("CARGO_PKG_VERSION"), ".tgz");
    assert!(packed.lines().count() == 2 && packed.lines().all(|line| line.ends_with(version)), "{packed}");

    let project = home.path().join("project");
    std::fs::create_dir(&project).unwrap();
    for file in std::fs::read_dir(package.join("tests")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), project.join(file.file_name())).unwrap();
    }
    std::fs::copy(package.join("../../docs/node.md"), project.join("node.md")).unwrap();
    let mut install = program(&npm, &home, &project).await;
    install.args(["install", "--offline", "--no-audit", "--no-fund", "--no-update-notifier"]);
    output(install.args(packed.lines())).await;
    // The tools are lent to the project, because nothing is downloaded here.
    let modules = tools::node_modules();
    std::fs::create_dir(project.join("node_modules/@types")).unwrap();
    for tool in ["vitest", "@types/node"] {
        symlink(modules.join(tool), project.join("node_modules").join(tool)).unwrap();
    }

    let way = json!({
        "relay": world.relay_url(),
        "relayAddr": world.https().to_string(),
        "caFile": world.ca_file(),
        "token": world.token().await,
    });
    let mut runner = program(&node, &home, &project).await;
    runner.args(["--test", "--test-reporter", "tap", "tunnel.test.mjs"]).env("TEST_RELAY", way.to_string());
    let said = output(&mut runner).await;
    assert!(said.contains("\n# fail 0\n") && said.contains("\n# skipped 0\n"), "{said}");
    let mut vitest = program(&node, &home, &project).await;
    vitest.arg(modules.join("vitest/vitest.mjs")).args(["run", "tunnel.spec.ts"]);
    let said = output(vitest.env("TEST_RELAY", way.to_string()).env("NO_COLOR", "1")).await;
    assert!(said.contains(" passed") && !said.contains("skipped"), "{said}");
    output(program(&node, &home, &project).await.arg(modules.join("typescript/bin/tsc"))).await;
}
