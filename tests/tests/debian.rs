//! The Debian packages, as those who install them meet them: under systemd, by hand and by a machine's first start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;

use relay_tests::machine::on_own_machine;
use relay_tests::process::binary;
use relay_tests::tools::{cloud_init, output, program};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// A file of `deploy/`.
fn deploy(name: &str) -> String {
    format!("{}/../deploy/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A directory with the packages, built around the binaries that all tests use.
async fn packages() -> TempDir {
    static BUILT: OnceCell<TempDir> = OnceCell::const_new();
    let built = BUILT.get_or_init(build).await;
    let place = tempfile::tempdir().unwrap();
    for package in ["relay-client.deb", "relay-server.deb"] {
        std::fs::copy(built.path().join(package), place.path().join(package)).unwrap();
    }
    place
}

async fn build() -> TempDir {
    let target = tempfile::tempdir().unwrap();
    let release = target.path().join("release");
    std::fs::create_dir(&release).unwrap();
    for name in ["relay", "relay-server"] {
        // What only debuggers read would take most of the time.
        let mut strip = Command::new(program("strip"));
        output(strip.arg("--strip-debug").arg("-o").arg(release.join(name)).arg(binary(name).await)).await;
    }
    let mut packages = Command::new(deploy("packages"));
    output(
        packages
            .args(["--no-build", "--fast", "--compress-type", "gz", "--compress-system"])
            .env("CARGO_TARGET_DIR", target.path()),
    )
    .await;
    let place = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(target.path().join("debian")).unwrap().map(Result::unwrap) {
        let name = file.file_name().into_string().unwrap();
        let (package, version) = name.split_once('_').unwrap();
        assert!(version.starts_with(env!("CARGO_PKG_VERSION")), "{name}");
        std::fs::rename(file.path(), place.path().join(format!("{package}.deb"))).unwrap();
    }
    place
}

/// A configuration that needs no certificate from elsewhere. It is valid on the machines of this test.
const CONFIGURATION: &str = r#"
domain = "relay.test"
https = "127.0.0.1:443"
http = "127.0.0.1:80"
"#;

#[tokio::test]
async fn a_package_is_installed_served_from_upgraded_and_removed_without_a_trace() {
    let place = packages().await;
    std::fs::write(place.path().join("relay-server.toml"), CONFIGURATION).unwrap();
    on_own_machine(
        place.path(),
        r#"
        # `!` would not end the script.
        no() { if "$@"; then false; fi; }
        soon() { for _ in $(seq 200); do if "$@"; then return; fi; sleep 0.1; done; false; }

        dpkg --install relay-client.deb relay-server.deb

        # What comes with the programs.
        for program in relay relay-server; do
          dpkg --search "*/man1/$program.1.gz" "*/fish/vendor_completions.d/$program.fish"
          zcat "/usr/share/man/man1/$program.1.gz" | man --local-file - | grep "^NAME"
          bash -c ". /usr/share/bash-completion/completions/$program && complete -p $program"
          grep "compdef _$program $program" "/usr/share/zsh/vendor-completions/_$program"
        done

        # Examples for those who watch it, as they are.
        grep 'alert: RelayDown' /usr/share/doc/relay-server/examples/prometheus-alerts.yaml
        python3 -m json.tool /usr/share/doc/relay-server/examples/grafana-dashboard.json >/dev/null

        # Nobody serves before there is a domain.
        no systemctl is-enabled relay-server
        no systemctl is-active relay-server
        relay-server check-config --config /etc/relay/relay-server.toml 2>&1 | grep 'domain is missing'
        # Two lines are enough.
        sed 's/^#\(domain\|acme\) = /\1 = /' /etc/relay/relay-server.toml >enough
        relay-server check-config --config enough

        cat relay-server.toml >/etc/relay/relay-server.toml
        systemctl enable --now relay-server
        soon relay-server health
        test "$(ps -o user= -p "$(systemctl show --property MainPID --value relay-server)")" = relay
        systemd-analyze verify relay-server.service
        systemd-analyze security --no-pager --threshold=15 relay-server | tail -n 1
        # What it keeps, and may hold secrets, is for nobody else.
        no runuser -u nobody -- cat /etc/relay/relay-server.toml
        no runuser -u nobody -- ls /var/lib/relay

        # A tunnel, as somebody else's.
        python3 -m http.server --bind 127.0.0.1 3000 &
        token=$(relay-server token create laptop)
        install -m 0644 /var/lib/relay/ca/ca.pem /tmp/ca.pem
        runuser -u nobody -- env HOME=/tmp/home RELAY_TOKEN="$token" relay http 3000 --subdomain hooks \
          --relay https://relay.test --relay-addr 127.0.0.1:443 --relay-ca /tmp/ca.pem &
        hooks() {
          curl --fail --silent --cacert /tmp/ca.pem --resolve hooks.relay.test:443:127.0.0.1 "https://hooks.relay.test$1"
        }
        soon hooks /relay-server.toml | grep 'relay.test'

        # Again, as for a newer version: what was configured stays, the relay is another process, and no request fails.
        before=$(systemctl show --property MainPID --value relay-server)
        (set +x; while sleep 0.02; do hooks / >/dev/null || echo failed >>failures; done) &
        calls=$!
        dpkg --install relay-server.deb
        hooks / >/dev/null
        kill "$calls"
        test ! -e failures
        relay-server health
        no test "$before" = "$(systemctl show --property MainPID --value relay-server)"
        relay-server token list | grep laptop
        cmp relay-server.toml /etc/relay/relay-server.toml

        dpkg --remove relay-server relay-client
        no pgrep --exact relay-server
        test ! -e /usr/bin/relay-server -a ! -e /usr/bin/relay
        test -d /var/lib/relay -a -f /etc/relay/relay-server.toml
        dpkg --purge relay-server relay-client
        for left in /var/lib/relay /etc/relay /usr/share/doc/relay-server /lib/systemd/system/relay-server.service; do
          test ! -e "$left"
        done
        "#,
    )
    .await;
}

/// The machine's own cloud-init does with the file what it does on a new machine, but for what needs the internet.
#[tokio::test]
async fn a_bare_machine_becomes_a_relay_at_its_first_start() {
    let (tree, python) = cloud_init();
    let python = python.as_std().get_program().to_owned();
    let check = async |file: &Path| {
        let mut schema = Command::new(&python);
        schema.args(["-m", "cloudinit.cmd.main", "schema", "--config-file"]).arg(file).env("PYTHONPATH", &tree);
        schema.output().await.unwrap()
    };
    let place = packages().await;
    let text = std::fs::read_to_string(deploy("cloud-init.yaml")).unwrap();
    let checked = check(deploy("cloud-init.yaml").as_ref()).await;
    assert!(checked.status.success() && !String::from_utf8_lossy(&checked.stderr).contains("Ignoring"), "{checked:?}");
    let wrong = place.path().join("wrong.yaml");
    std::fs::write(&wrong, text.replace("permissions: \"0640\"", "permissions: [1]")).unwrap();
    assert!(!check(&wrong).await.status.success(), "the check would notice nothing");

    let configuration = ["    domain = \"relay.example.com\"\n", "      acme = \"you@example.com\"\n"].concat();
    let own = CONFIGURATION.trim().replace('\n', "\n      ");
    let package = "https://downloads.example.com/relay-server_0.1.0-1_amd64.deb";
    assert!(text.contains(&configuration) && text.contains(package));
    let text = text.replace(&configuration, &format!("    {own}\n")).replace(package, "file:///test/relay-server.deb");
    std::fs::write(place.path().join("user-data"), text).unwrap();
    let only = "\
datasource_list: [NoCloud]
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
system_info: {distro: debian}
";
    std::fs::write(place.path().join("cloud.cfg"), only).unwrap();
    let script = r#"
        mkdir -p /etc/cloud /var/lib/cloud/seed/nocloud
        cp cloud.cfg /etc/cloud/
        cp user-data /var/lib/cloud/seed/nocloud/
        echo 'instance-id: first' >/var/lib/cloud/seed/nocloud/meta-data
        cloud_init() { PYTHONPATH=@TREE@ @PYTHON@ -m cloudinit.cmd.main "$@"; }
        cloud_init init --local
        cloud_init init
        cloud_init modules --mode config
        cloud_init modules --mode final
        systemctl is-enabled relay-server
        for _ in $(seq 200); do if relay-server health; then break; fi; sleep 0.1; done
        relay-server token create laptop | grep '^rly_'
        "#;
    let script = script.replace("@TREE@", tree.to_str().unwrap()).replace("@PYTHON@", python.to_str().unwrap());
    on_own_machine(place.path(), &script).await;
}
