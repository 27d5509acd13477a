//! The dashboard on the admin address, in a real browser.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use http::{Method, Request};
use relay_tests::body::empty;
use relay_tests::{Answer, App, Browser, Http, Place, World, within};
use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpStream;

/// The page at this address, by whoever has the token that is in the data directory.
async fn enter(address: std::net::SocketAddr, data: &std::path::Path) -> Browser {
    let token = std::fs::read_to_string(data.join("admin.token")).unwrap();
    let mut browser = Browser::start().await;
    browser.goto(&format!("http://{address}/")).await;
    browser.fill("input[type=password]", &token).await;
    browser.press(&["Enter"]).await;
    browser.shows(".status", "ready").await;
    browser
}

async fn page(place: &Place) -> Browser {
    enter(place.relay.admin.unwrap(), place.relay.data_dir()).await
}

/// A condition for [`Browser::wait`]: the list has so many rows.
fn rows(count: usize) -> String {
    format!("document.querySelectorAll('main tbody tr').length === {count}")
}

async fn turn(browser: &mut Browser, tab: &str) {
    browser.eval(&format!("location.hash = {tab:?}")).await;
}

#[tokio::test]
async fn clients_are_seen_and_sent_away() {
    let (place, app) = (Place::new().await, App::echo().await);
    let _client = place.client(&app, "hooks", &[]).await;
    let mut browser = page(&place).await;
    browser.shows(".tile", "1 tunnel,").await;
    // What has come between two looks is shown as a rate, and what the relay has answered itself by its reason.
    assert_eq!(place.post("hooks", "/", "1").await.code(), 200);
    assert_eq!(place.post("nobody", "/", "1").await.code(), 404);
    browser.wait("[...document.querySelectorAll('.tile .value')][1].innerText !== '0'").await;
    browser.shows("main tbody tr", "tunnel-not-found").await;
    browser.wait("document.querySelector('svg path').getAttribute('d').includes('L')").await;

    browser.press(&["2"]).await;
    browser.wait(&rows(1)).await;
    browser.shows("main tbody tr", "hooks").await;
    let first = browser.eval("document.querySelector('tbody tr').dataset.id").await;
    browser.click("button:text-is('Disconnect')").await;
    // Nothing happens before it is said what will.
    browser.shows("dialog", "The client of me at 127.0.0.1 is disconnected, and 1 tunnel of it").await;
    browser.press(&["Escape"]).await;
    browser.wait("!document.querySelector('dialog')").await;
    assert_eq!(browser.eval("document.querySelector('tbody tr').dataset.id").await, first);
    browser.click("button:text-is('Disconnect')").await;
    browser.click("dialog .danger").await;
    browser.shows(".notice", "The session is ended").await;
    // The client comes back, as another session.
    browser.wait(&format!("(document.querySelector('tbody tr')?.dataset.id ?? {first}) !== {first}")).await;

    // What is leased ends by itself.
    turn(&mut browser, "names").await;
    browser.shows("[data-id=hooks]", "while it is used").await;
    let deeds = "[...document.querySelectorAll('[data-id=hooks] button')].map((button) => button.innerText)";
    assert_eq!(browser.eval(deeds).await, json!(["Reserve…"]));

    turn(&mut browser, "tunnels").await;
    browser.click("button:text-is('Block…')").await;
    browser.fill("dialog input[name=reason]", "too many").await;
    browser.click("dialog .primary").await;
    browser.shows(".notice", "hooks is kept out").await;
    assert_eq!(place.post("hooks", "/", "1").await.code(), 403);
    turn(&mut browser, "blocks").await;
    browser.shows("main tbody tr", "too many").await;
    browser.click("button:text-is('Let in')").await;
    browser.shows("main", "Nothing is kept out.").await;

    turn(&mut browser, "audit").await;
    browser.wait(&format!("{} && [...document.querySelectorAll('td .id')].map((e) => e.innerText)", rows(4))).await;
    for operation in ["session.end", "block.add", "block.remove"] {
        browser.shows("main tbody tr", operation).await;
    }
    assert_eq!(browser.problems().await, json!([]));
}

#[tokio::test]
async fn tokens_and_names_are_made_and_taken_back() {
    let place = Place::new().await;
    let mut browser = page(&place).await;
    turn(&mut browser, "tokens").await;
    browser.wait(&rows(1)).await;
    browser.click("button:text-is('Make a token…')").await;
    browser.fill("dialog input[name=name]", "me").await;
    browser.press(&["Enter"]).await;
    browser.shows("dialog .problem", "There is a token named \"me\" already").await;
    browser.fill("dialog input[name=name]", "ci").await;
    browser.fill("dialog input[name=reserve]", "builds, checks").await;
    browser.press(&["Enter"]).await;
    browser.shows("dialog .secret", "rly_").await;
    let secret = browser.eval("document.querySelector('.secret').innerText").await;
    browser.click("dialog button:text-is('Done')").await;
    browser.wait(&rows(2)).await;
    assert_eq!(browser.eval(&format!("document.documentElement.innerHTML.includes({secret})")).await, false);
    // It is what its owner presents.
    let words = ["http", "3000", "--subdomain", "builds", "--output", "json"];
    let words = place.relay.arguments(secret.as_str().unwrap(), &words);
    let client = relay_tests::RelayClient::of(place.spawn(words).await).await;
    assert_eq!(client.ready["name"], "builds");

    // What is left empty is no limit, and what is not touched stays as it was.
    browser.click("[data-id^='ci '] button:text-is('Limits…')").await;
    browser.fill("dialog input[name=max_rate]", "50").await;
    browser.fill("dialog input[name=max_body]", "0.5").await;
    browser.fill("dialog input[name=allow]", "10.0.0.0/8, 2001:db8::/32").await;
    browser.click("dialog .primary").await;
    browser.shows(".notice", "The limits of ci are changed").await;
    let listed = async || place.relay.token_command(&["list", "--output", "json"]).await.lines().remove(1);
    let said = |token: &serde_json::Value| {
        ["name", "max_tunnels", "max_rate", "max_streams", "max_body", "allow"].map(|field| token[field].clone())
    };
    let allow = ["10.0.0.0/8", "2001:db8::/32"];
    let limits = [json!("ci"), json!(20), json!(50), json!(null), json!(512 << 10), json!(allow)];
    assert_eq!(said(&listed().await), limits);
    browser.click("[data-id^='ci '] button:text-is('Limits…')").await;
    assert_eq!(browser.eval("document.querySelector('[name=max_body]').value").await, "0.5");
    browser.fill("dialog input[name=max_rate]", "").await;
    browser.fill("dialog input[name=allow]", "nowhere").await;
    browser.press(&["Enter"]).await;
    browser.shows("dialog .problem", "nowhere").await;
    browser.fill("dialog input[name=allow]", "").await;
    browser.press(&["Enter"]).await;
    browser.wait("!document.querySelector('dialog')").await;
    let limits = [json!("ci"), json!(20), json!(null), json!(null), json!(512 << 10), json!([])];
    assert_eq!(said(&listed().await), limits);

    turn(&mut browser, "names").await;
    browser.wait(&rows(2)).await;
    browser.click("button:text-is('Reserve a name…')").await;
    browser.fill("dialog input[name=name]", "hooks").await;
    browser.eval("document.querySelector('dialog select[name=inbox]').value = 'on'").await;
    browser.press(&["Enter"]).await;
    browser.shows(".notice", "hooks is reserved for me").await;
    browser.wait(&rows(3)).await;
    assert_eq!(place.post("hooks", "/", "kept").await.code(), 202);
    // What would lose a webhook is refused until that is said, too.
    browser.click("[data-id=hooks] button:text-is('Release')").await;
    browser.shows("dialog", "For 30 days me alone gets it back").await;
    browser.click("dialog .primary").await;
    browser.shows("dialog .problem", "1 webhook that was not delivered would be forgotten").await;
    browser.click("dialog input[name=forget]").await;
    browser.click("dialog .primary").await;
    browser.shows(".notice", "hooks is released").await;
    browser.wait(&rows(2)).await;

    turn(&mut browser, "tokens").await;
    browser.click("[data-id^='ci '] button:text-is('Revoke')").await;
    browser.shows("dialog", "nobody gets in with it any more").await;
    browser.click("dialog .danger").await;
    browser.shows("[data-id^='ci ']", "revoked").await;
    turn(&mut browser, "sessions").await;
    browser.shows("main", "No client is connected.").await;
    assert_eq!(browser.problems().await, json!([]));
}

#[tokio::test]
async fn webhooks_that_wait_are_looked_after() {
    let place = Place::new().await;
    assert_eq!(place.relay.token_command(&["reserve", "me", "hooks", "--inbox"]).await.code(), 0);
    for path in ["/one", "/two", "/three"] {
        assert_eq!(place.post("hooks", path, path).await.code(), 202);
    }
    let mut browser = page(&place).await;
    browser.wait("[...document.querySelectorAll('.tile')].some((e) => /inboxes\\n+3\\n+no dead letters, waiting for/.test(e.innerText))")
        .await;
    browser.press(&["4"]).await;
    browser.click("td a").await;
    browser.wait(&rows(3)).await;
    browser.press(&["/"]).await;
    browser.fill("#search", "two").await;
    browser.wait(&rows(1)).await;
    browser.click("button:text-is('Drop')").await;
    browser.shows("dialog", "What was not delivered never will be").await;
    browser.click("dialog .danger").await;
    browser.shows("main", "None fits this search.").await;
    browser.fill("#search", "").await;
    browser.wait(&rows(2)).await;
    browser.click("button:text-is('Pause deliveries')").await;
    browser.shows(".bar .words", "paused").await;
    browser.click("button:text-is('Resume')").await;
    browser.wait("!document.querySelector('.bar .words').innerText.includes('paused')").await;

    let app = App::recording().await;
    let _client = place.client(&app, "hooks", &["--inbox"]).await;
    app.reached(2).await;
    browser.shows("main", "None.").await;
    browser.click("[role=radio]:has-text('Delivered')").await;
    browser.wait(&rows(2)).await;
    browser.click("button:text-is('Drop all')").await;
    browser.shows("dialog", "all 2 that were delivered").await;
    browser.click("dialog .danger").await;
    browser.shows("main", "None.").await;
    assert_eq!(browser.problems().await, json!([]));
}

#[tokio::test]
async fn only_who_has_the_token_gets_in_and_only_this_tab_knows_it() {
    let place = Place::new().await;
    let address = place.relay.admin.unwrap();
    let mut browser = Browser::start().await;
    browser.goto(&format!("http://{address}/#tokens")).await;
    browser.fill("input[type=password]", "rly_wrong").await;
    browser.press(&["Enter"]).await;
    browser.shows(".problem", "The admin token is missing or wrong.").await;
    assert_eq!(browser.eval("sessionStorage.length + localStorage.length").await, 0);

    let mut browser = page(&place).await;
    browser.reload().await;
    browser.shows(".status", "ready").await;
    assert_eq!(browser.eval("localStorage.length + document.cookie.length").await, 0);
    // Once there is another one, this one is forgotten.
    let data = place.relay.data_dir().display().to_string();
    let renewed = relay_tests::process::run("relay-server", ["admin-token", "--renew", "--data-dir", &data]).await;
    assert_eq!(renewed.code(), 0, "{renewed:?}");
    browser.shows(".problem", "The admin token is not valid any more.").await;
    assert_eq!(browser.eval("sessionStorage.length").await, 0);
    browser.fill("input[type=password]", renewed.stdout.trim()).await;
    browser.press(&["Enter"]).await;
    browser.shows(".status", "ready").await;
    browser.click("button:text-is('Sign out')").await;
    browser.wait("document.querySelector('input[type=password]')?.value === ''").await;
    assert_eq!(browser.eval("sessionStorage.length").await, 0);
    assert_eq!(browser.problems().await, json!([]));
}

#[tokio::test]
async fn it_keeps_nobody_out() {
    let (place, app) = (Place::new().await, App::echo().await);
    assert_eq!(place.relay.token_command(&["reserve", "me", "kept", "--inbox"]).await.code(), 0);
    assert_eq!(place.post("kept", "/", "1").await.code(), 202);
    assert_eq!(place.post("nobody", "/", "1").await.code(), 404);
    let _client = place.client(&app, "hooks", &[]).await;
    let mut browser = page(&place).await;
    let tabs =
        ["sessions", "tunnels", "inboxes", "inboxes/kept", "tokens", "names", "certificates", "audit", "overview"];
    for (width, dark) in [(1280, false), (380, true), (1280, true), (380, false)] {
        browser.view(width, 800, dark).await;
        for tab in tabs {
            turn(&mut browser, tab).await;
            browser.wait("document.querySelectorAll('main tbody tr').length > 0").await;
            assert_eq!(browser.barriers().await, json!([]), "{tab}, {width} wide, dark: {dark}");
            let wide = "Math.max(document.documentElement.scrollWidth, document.querySelector('main').scrollWidth)";
            let wide = browser.eval(wide).await.as_u64().unwrap();
            assert!(wide <= u64::from(width), "{tab} is {wide} wide, and there are {width}");
        }
        turn(&mut browser, "tokens").await;
        // On a narrow screen there is room for what cannot be put off.
        let buttons = ["Make a token…", "Revoke", "Limits…"];
        for button in &buttons[..if width < 600 { 2 } else { 3 }] {
            browser.click(&format!("button:text-is('{button}')")).await;
            browser.wait("document.querySelector('dialog')").await;
            assert_eq!(browser.barriers().await, json!([]), "{button}, {width} wide, dark: {dark}");
            browser.press(&["Escape"]).await;
            browser.wait("!document.querySelector('dialog')").await;
        }
    }
    browser.click("button:text-is('Sign out')").await;
    browser.wait("document.querySelector('input[type=password]')").await;
    assert_eq!(browser.barriers().await, json!([]));
    assert_eq!(browser.problems().await, json!([]));
}

/// What a relay would not tell: markup and control bytes in every field, and a thousand of everything.
const HOSTILE: &str = r#"
  const evil = '<img src=x onerror="window.owned=1"><script>window.owned=1<\/script>\u0000\u0007\u202e\ud800';
  const script = "java" + "script:window.owned=1";
  const each = (make) => Array.from({ length: 1000 }, (_, at) => make(`${at} ${evil}`));
  const head = { bounds_s: [1], counts: [0, 0] };
  const traffic = { uptime_ms: 1, under_way: 0, requests: {}, errors: { [evil]: 1 }, received_bytes: 0, sent_bytes: 0, head };
  const answers = {
    status: { version: evil, url: script, ready: false, trouble: evil, sessions: 1, tunnels: 1, connections: 1, traffic,
      inboxes: null },
    sessions: { sessions: each((id) => ({ id, token: evil, address: evil, client: evil, since: evil, streams: 1,
      tunnels: [evil] })) },
    tunnels: { tunnels: each((name) => ({ name, url: script, token: evil, session: evil, inbox: true })) },
    tokens: { tokens: each((name) => ({ name, state: evil, created_at: evil, expires_at: evil, last_used_at: evil,
      month_bytes: 1, max_bytes: 1, reserved: [evil], leased: [evil] })) },
    names: { names: each((name) => ({ name, token: evil, state: evil, provider: evil })) },
    inboxes: { inboxes: each((name) => ({ name, token: evil, how: evil, paused: true, waiting: 1, delivered: 1, dead: 1,
      bytes: 1, oldest_at: evil })) },
    certificates: { certificates: each((domain) => ({ domain, source: evil, names: [evil], issuer: evil, not_after: evil,
      trouble: evil })) },
    blocks: { blocks: each((name) => ({ id: name, address: null, name, token: null, reason: evil, at: evil })) },
  };
  // Of these there are 500, and a page has 150 at most.
  const page = (url, make) => {
    const asked = new URL(url, location).searchParams;
    const first = Number(asked.get("before") ?? 0);
    const next = first + Math.min(Number(asked.get("limit")), 150);
    const rows = Array.from({ length: next - first }, (_, at) => make(`${first + at} ${evil}`));
    return [rows, next < 500 ? next : null];
  };
  const audit = (url) => {
    const [entries, next] = page(url, (id) => ({ id, at: evil, by: { via: evil, address: evil }, operation: evil,
      subject: evil, detail: id }));
    return { entries, next };
  };
  const inbox = (url) => {
    const [webhooks, next] = page(url, (id) => ({ id, state: evil, method: evil, path: `/${id}`, first_at: evil, due_at: evil,
      under_way: false, attempts: 1, status: 500, reason: evil, provider: evil, event_type: evil }));
    return { inbox: answers.inboxes.inboxes[0], webhooks, next };
  };
  window.fetch = async (url) => {
    const [kind, name] = String(url).split("?")[0].split("/").slice(3);
    const answer = kind === "audit" ? audit(url) : name ? inbox(url) : answers[kind];
    return new Response(JSON.stringify(answer));
  };
"#;

#[tokio::test]
async fn a_thousand_of_each_are_shown_in_part_and_all_as_text() {
    let place = Place::new().await;
    let mut browser = Browser::start().await;
    browser.before(HOSTILE).await;
    browser.goto(&format!("http://{}/", place.relay.admin.unwrap())).await;
    browser.fill("input[type=password]", "any").await;
    browser.press(&["Enter"]).await;
    browser.shows(".lost", "onerror").await;
    browser.shows("main td", "onerror").await;
    // Where the disk does not tell, nobody is told that there is nothing.
    browser
        .wait("[...document.querySelectorAll('.tile')].some((e) => /inboxes\\n+–\\n+not known/.test(e.innerText))")
        .await;
    for tab in ["sessions", "tunnels", "inboxes", "inboxes/0", "tokens", "names", "blocks", "certificates", "audit"] {
        turn(&mut browser, tab).await;
        browser.wait(&format!("{} && document.body.innerText.includes('onerror')", rows(100))).await;
        let links = "[...document.links].map((link) => link.protocol).filter((known) => known !== 'http:')";
        assert_eq!(browser.eval(links).await, json!([]), "{tab}");
    }
    turn(&mut browser, "sessions").await;
    browser.wait(&rows(100)).await;
    browser.click("button:text-is('100 of 900 more')").await;
    browser.wait(&rows(200)).await;
    // Typing finds those that are not on the page.
    browser.fill("#search", "997").await;
    browser.wait(&rows(1)).await;
    browser.shows("main .words", "1 of 1,000").await;

    // Of those that are not told all at once, it is said which ones are searched, and the others can be had.
    for tab in ["audit", "inboxes/0"] {
        turn(&mut browser, tab).await;
        browser.wait(&rows(100)).await;
        browser.fill("#search", "307").await;
        browser.shows("main", "None of the latest 100 fits this search.").await;
        browser.shows("main .words", "0 of the latest 100").await;
        browser.fill("#search", "").await;
        for shown in 2..=4 {
            browser.click("button:text-is('More')").await;
            browser.wait(&rows(shown * 100)).await;
        }
        browser.shows("main .words", "the latest 400").await;
        browser.fill("#search", "307").await;
        browser.wait(&rows(1)).await;
    }

    let refused = browser.eval("{ try { document.body.innerHTML = 'x' } catch (error) { error.name } }").await;
    assert_eq!(refused, "TypeError", "the policy stands behind the sources");
    assert_eq!(browser.eval("window.owned === undefined").await, true);
    assert_eq!(browser.eval("document.querySelectorAll('img, script:not([src])').length").await, 0);
    assert_eq!(browser.problems().await.as_array().unwrap().len(), 1, "the one that was refused");
}

#[tokio::test]
async fn it_says_when_the_relay_is_gone_and_asks_nothing_while_nobody_looks() {
    let mut world = World::start().await;
    let mut browser = Browser::start().await;
    // The test is the clock.
    let clock = "window.ticks = []; window.setInterval = (tick) => ticks.push(tick); \
                 const ask = window.fetch; window.asked = 0; \
                 window.fetch = (...words) => { window.asked += 1; return ask(...words); }";
    browser.before(clock).await;
    browser.goto(&format!("http://{}/", world.admin())).await;
    let token = std::fs::read_to_string(world.data_dir().join("admin.token")).unwrap();
    browser.fill("input[type=password]", &token).await;
    browser.press(&["Enter"]).await;
    browser.shows(".tile", "the first ends in").await;
    let tick = "ticks.forEach((tick) => tick()); asked";
    let hide =
        |hidden: bool| format!("Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }})");
    let asked = browser.eval("asked").await;
    browser.eval(&hide(true)).await;
    assert_eq!(browser.eval(tick).await, asked);
    browser.eval(&hide(false)).await;
    assert_ne!(browser.eval(tick).await, asked);
    browser.wait("!document.querySelector('[role=alert]')").await;

    world.stop().await;
    browser.eval(tick).await;
    browser.shows(".lost", "The relay has not answered since").await;
    browser.shows(".tile", "the first ends in").await;
    world.start_again().await;
    browser.eval(tick).await;
    browser.wait("!document.querySelector('.lost')").await;
    assert_eq!(browser.problems().await, json!([]));
    world.shutdown().await;
}

#[tokio::test]
async fn it_says_when_the_relay_hangs_and_shows_what_it_was_told_before() {
    let place = Place::new().await;
    let mut browser = Browser::start().await;
    let hang = "const ask = window.fetch; window.hangs = false; \
                window.fetch = (url, init) => hangs && init.method === 'GET' ? new Promise((_, fail) => \
                  init.signal.addEventListener('abort', () => fail(init.signal.reason))) : ask(url, init);";
    browser.before(hang).await;
    browser.goto(&format!("http://{}/#tokens", place.relay.admin.unwrap())).await;
    let token = std::fs::read_to_string(place.relay.data_dir().join("admin.token")).unwrap();
    browser.fill("input[type=password]", &token).await;
    browser.press(&["Enter"]).await;
    browser.wait(&rows(1)).await;
    // What is told only once is shown whether more is told or not.
    browser.click("button:text-is('Make a token…')").await;
    browser.fill("dialog input[name=name]", "ci").await;
    browser.eval("hangs = true").await;
    browser.press(&["Enter"]).await;
    browser.shows("dialog .secret", "rly_").await;
    browser.click("dialog button:text-is('Done')").await;
    browser.shows(".lost", "The relay has not answered since").await;
    assert_eq!(browser.eval("document.querySelectorAll('main tbody tr').length").await, 1);
    browser.eval("hangs = false").await;
    browser.wait(&rows(2)).await;

    place.relay.process.signal(Signal::STOP);
    browser.shows(".lost", "The relay has not answered since").await;
    place.relay.process.signal(Signal::CONT);
    browser.shows(".status", "ready").await;
    assert_eq!(browser.problems().await, json!([]));
}

#[tokio::test]
async fn its_files_are_for_nobody_elses_pages() {
    let world = World::start().await;
    let get = async |method: Method, path: &str, host: &str, headers: &[(&str, &str)]| -> Answer {
        let uri = format!("http://{host}{path}");
        let request = headers.iter().fold(Request::builder().method(method).uri(uri), |r, (n, v)| r.header(*n, *v));
        let tcp = TcpStream::connect(world.admin()).await.unwrap();
        within("a file of the page", Http::one(tcp).await.answer(request.body(empty()).unwrap())).await
    };
    let here = world.admin().to_string();
    for (path, kind) in [("/", "text/html"), ("/app.js", "text/javascript"), ("/app.css", "text/css")] {
        let file = get(Method::GET, path, &here, &[]).await;
        assert_eq!(file.code(), 200);
        assert!(file.header("content-type").starts_with(kind), "{file:?}");
        let policy = file.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("require-trusted-types-for 'script'"));
        assert_eq!((file.header("x-content-type-options"), file.header("x-frame-options")), ("nosniff", "DENY"));
        // It is kept, and asked about.
        let again = get(Method::GET, path, &here, &[("if-none-match", file.header("etag"))]).await;
        assert_eq!((again.code(), again.text()), (304, ""));
        // Under a stranger's name the page would be that stranger's.
        assert_eq!(get(Method::GET, path, "evil.example", &[]).await.code(), 404);
        assert_eq!(get(Method::POST, path, &here, &[]).await.code(), 405);
    }
    let linked = get(Method::GET, "/", "localhost", &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!(linked.code(), 200, "a link may lead there");
    world.shutdown().await;
}
