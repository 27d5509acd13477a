//! A page in headless Chromium, which a test looks at and operates as a person does.

use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::tools;

/// A browser with one page. It ends when this is dropped.
#[derive(Debug)]
pub struct Browser {
    // The first to go: the browser ends with its input.
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _driver: Child,
    /// What the browser writes for itself.
    _files: TempDir,
}

impl Browser {
    /// Starts it, 1280 pixels wide, with light colours.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// As [`Browser::start`], for pages whose certificates are from any authority.
    pub async fn trusting() -> Self {
        Self::with(&[("ANY_AUTHORITY", "1")]).await
    }

    async fn with(variables: &[(&str, &str)]) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let mut driver = Command::new(tools::program("node"));
        driver.arg(tools::app_file("browser.cjs")).env("NODE_PATH", tools::node_modules()).env("TMPDIR", files.path());
        driver.envs(variables.iter().copied());
        driver.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut driver = driver.spawn().expect("node starts");
        let (commands, answers) = (driver.stdin.take().expect("piped"), driver.stdout.take().expect("piped"));
        let mut browser = Self { commands, answers: BufReader::new(answers).lines(), _driver: driver, _files: files };
        browser.view(1280, 800, false).await;
        browser
    }

    /// Looks at the page in another size, and with dark colours or light ones.
    pub async fn view(&mut self, width: u32, height: u32, dark: bool) {
        self.tell("view", json!({ "width": width, "height": height, "dark": dark })).await;
    }

    /// Runs a script ahead of those of each page that is opened from now on.
    pub async fn before(&mut self, script: &str) {
        self.tell("before", json!(script)).await;
    }

    /// Opens a page.
    pub async fn goto(&mut self, url: &str) {
        self.tell("goto", json!(url)).await;
    }

    /// Opens the page once more. What is asked then is asked of the new one.
    pub async fn reload(&mut self) {
        self.tell("reload", json!(null)).await;
    }

    /// Presses keys one after the other, by their names in JavaScript.
    pub async fn press(&mut self, keys: &[&str]) {
        self.tell("press", json!(keys)).await;
    }

    /// Writes a text into a field in place of what stands there.
    pub async fn fill(&mut self, selector: &str, text: &str) {
        self.tell("fill", json!([selector, text])).await;
    }

    /// Clicks what is first of what a selector of CSS or Playwright takes.
    pub async fn click(&mut self, selector: &str) {
        self.tell("click", json!(selector)).await;
    }

    /// Waits until an expression is true, which takes a minute at most. What it then is.
    pub async fn wait(&mut self, expression: &str) -> Value {
        self.tell("wait", json!(expression)).await
    }

    /// Waits until the text of something has this in it.
    pub async fn shows(&mut self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        self.wait(&format!("[...document.querySelectorAll({selector})].some((e) => e.innerText.includes({text}))"))
            .await;
    }

    /// What an expression is, or a promise comes to.
    pub async fn eval(&mut self, expression: &str) -> Value {
        self.tell("eval", json!(expression)).await
    }

    /// Clicks what saves a file. Its name, and what is in it.
    pub async fn download(&mut self, selector: &str) -> (String, Vec<u8>) {
        let file = self.tell("download", json!(selector)).await;
        serde_json::from_value(file).expect("a name and bytes")
    }

    /// Bytes that the page's scripts hold, without what is only waiting to be given back.
    pub async fn heap(&mut self) -> u64 {
        self.tell("heap", json!(null)).await.as_u64().expect("a number")
    }

    /// Takes a picture.
    pub async fn screenshot(&mut self, file: &std::path::Path) {
        self.tell("screenshot", json!(file)).await;
    }

    /// What keeps people out: labels that are missing, colours that are too near to each other, and more of what
    /// [axe-core](https://github.com/dequelabs/axe-core) knows.
    pub async fn barriers(&mut self) -> Value {
        self.tell("check", json!(null)).await
    }

    /// What the browser has complained of: errors of scripts, and what a policy has kept from happening.
    pub async fn problems(&mut self) -> Value {
        self.tell("problems", json!(null)).await
    }

    async fn tell(&mut self, command: &str, argument: Value) -> Value {
        let line = format!("{}\n", json!({ command: argument }));
        self.commands.write_all(line.as_bytes()).await.expect("the browser listens");
        let answer = self.answers.next_line().await.expect("UTF-8").expect("the browser answers");
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert!(answer["error"].is_null(), "{line}{}", answer["error"].as_str().unwrap_or_default());
        answer["value"].take()
    }
}
