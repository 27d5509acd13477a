//! Who may call a tunnel, with what, and how often: an extra of a [`TunnelSpec`](crate::message::TunnelSpec), as
//! `PROTOCOL.md` lists it. The relay keeps it with the tunnel's inbox, so that it holds while the client is away.
//!
//! Credentials cross the wire as hashes: the relay has to know one when it is shown, and not what it is.

use std::fmt;
use std::net::IpAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, AUTHORIZATION};
use http::{HeaderName, HeaderValue, Method};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::exchange::{is_framing, is_hop_by_hop, is_look_alike, is_owned};
use crate::inbox::sized;
use crate::message::Extra;
use crate::network::Network;
use crate::oidc::{Oidc, OidcError};
use crate::paths::{self, MAX_PATTERN, MAX_PATTERNS, NoPath, clip};

/// Most bytes of what is said of who may call one tunnel.
pub const MAX_TOLD: usize = 16 * 1024;

/// Most networks of a tunnel, of those that are let in and of those that are not.
pub const MAX_NETWORKS: usize = 256;

/// Most credentials of a tunnel, of each kind.
pub const MAX_CREDENTIALS: usize = 32;

/// Most certificates of authorities of a tunnel.
pub const MAX_AUTHORITIES: usize = 8;

/// In a tunnel's spec: who may call it, as JSON.
const ACCESS: u16 = 7;

/// In the Welcome: the relay knows that.
const KNOWN: u16 = 3;

/// Who may call a tunnel. What is not said does not matter.
///
/// As JSON, each field may be left out. One that is not known is refused: a rule that is not understood would let in
/// whom it was to keep out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Where requests may come from; empty for anywhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Network>,
    /// Where they may not come from, though it be in `allow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Network>,
    /// `NAME:PASSWORD` of RFC 7617. One of these or of `keys` is enough.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub basic: Vec<Digest>,
    /// Keys in a header.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<ApiKey>,
    /// Methods; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Paths, in which `*` stands for anything; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Authorities, one of which has issued the certificate that the sender shows in the TLS handshake; empty where none is
    /// asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub client_ca: Vec<Authority>,
    /// The login in a browser that is asked for, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Box<Oidc>>,
    /// Requests in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Most bytes of a body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<u64>,
}

/// A key that stands in a header of each request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The header's name in lower case. In `authorization` the key stands behind `Bearer` (RFC 6750).
    pub header: String,
    /// The key.
    pub key: Digest,
}

/// The certificate of an authority, in DER; in Base64 as JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority(Vec<u8>);

impl Authority {
    /// This certificate.
    ///
    /// # Errors
    /// [`AccessError::Authority`]: nothing can be checked with it.
    pub fn new(der: Vec<u8>) -> Result<Self, AccessError> {
        webpki::anchor_from_trusted_cert(&CertificateDer::from(der.as_slice())).map_err(|_| AccessError::Authority)?;
        Ok(Self(der))
    }

    /// In DER.
    #[must_use]
    pub fn der(&self) -> CertificateDer<'_> {
        CertificateDer::from(self.0.as_slice())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Serialize for Authority {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Authority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let der = STANDARD.decode(text).map_err(|_| de::Error::custom("an authority is a certificate in Base64"))?;
        Self::new(der).map_err(de::Error::custom)
    }
}

/// The SHA-256 of a credential; in hex as JSON. Debug output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// That of a credential.
    #[must_use]
    pub fn of(credential: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(digest(&SHA256, credential).as_ref()).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }

    /// Whether it is the same. How long that takes says nothing of it.
    fn is(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}", Hex(&self.0)))
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || de::Error::custom("a digest is 64 hexadecimal digits");
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * at..2 * at + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// What cannot be said of who may call a tunnel. Nothing of a credential is shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// It cannot be read, or has a rule that is not known here.
    #[error("what is said of who may call the tunnel cannot be read: {0}")]
    Malformed(String),
    /// More than there is room for.
    #[error(
        "a tunnel has at most {MAX_NETWORKS} networks, {MAX_CREDENTIALS} names with passwords, {MAX_CREDENTIALS} keys, \
         {MAX_AUTHORITIES} certificates of authorities, {MAX_PATTERNS} methods and {MAX_PATTERNS} paths, of {MAX_TOLD} bytes in \
         all"
    )]
    TooMuch,
    /// It is no method.
    #[error("{0:?} is no method, such as POST")]
    Method(String),
    /// It is no pattern of paths.
    #[error(transparent)]
    Path(#[from] NoPath),
    /// No key may stand there.
    #[error("{0:?} is no header that a key can stand in, such as X-Api-Key")]
    Header(String),
    /// It is no authority's.
    #[error("it is no certificate of an authority that others can be checked with")]
    Authority,
    /// It is no login.
    #[error(transparent)]
    Oidc(#[from] OidcError),
    /// It would let nobody in.
    #[error("a tunnel takes at least one request in a second, and one byte")]
    Nothing,
}

/// Whether a key can stand there: in none of the connection's headers, of the relay's own, and of those that are dropped
/// from some requests, which all would have it refuse everybody.
fn can_have_key(name: &str) -> bool {
    let is_dropped = |header: &HeaderName| {
        is_owned(header)
            || is_hop_by_hop(header)
            || matches!(*header, header::COOKIE | header::TRAILER)
            || header.as_str() == "cookie2"
    };
    !is_framing(name)
        && !is_look_alike(name)
        && HeaderName::from_lowercase(name.as_bytes()).is_ok_and(|header| !is_dropped(&header))
}

impl Access {
    /// Lets nobody in: for rules that are lost.
    #[must_use]
    pub fn nobody() -> Self {
        let everywhere = |address: IpAddr| Network::of(address, 0);
        let all = [IpAddr::from([0; 4]), IpAddr::from([0_u8; 16])];
        Self { deny: all.into_iter().filter_map(everywhere).collect(), ..Self::default() }
    }

    /// Whether everybody may.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// The extras that say so; none where everybody may.
    ///
    /// # Errors
    /// [`AccessError`]: the relay would refuse it.
    pub fn extras(&self) -> Result<Vec<Extra>, AccessError> {
        if self.is_open() {
            return Ok(Vec::new());
        }
        let value = serde_json::to_vec(self).map_err(|error| AccessError::Malformed(error.to_string()))?;
        let secret = self.oidc.as_deref().and_then(Oidc::secret_extra);
        let extras = [Extra { tag: ACCESS, value }].into_iter().chain(secret).collect::<Vec<_>>();
        // What can be said is what can be read.
        Self::of(&extras).map(|_| extras)
    }

    /// This, for when the client is away: nobody needs its secret then.
    #[must_use]
    pub fn without_secret(&self) -> Self {
        let oidc = self.oidc.clone().map(|oidc| Box::new(Oidc { secret: None, ..*oidc }));
        Self { oidc, ..self.clone() }
    }

    /// What a tunnel's extras say; none where everybody may.
    ///
    /// # Errors
    /// [`AccessError`] says what is wrong with it.
    pub fn of(extras: &[Extra]) -> Result<Option<Self>, AccessError> {
        let mut all = extras.iter().filter(|extra| extra.tag == ACCESS);
        let Some(extra) = all.next() else { return Ok(None) };
        if all.next().is_some() {
            return Err(AccessError::Malformed("it is said twice".to_owned()));
        }
        if extra.value.len() > MAX_TOLD {
            return Err(AccessError::TooMuch);
        }
        // serde reads a struct from a list, too, and an empty one would be no rules.
        if extra.value.first() != Some(&b'{') {
            return Err(AccessError::Malformed("it is no object".to_owned()));
        }
        let mut this: Self =
            serde_json::from_slice(&extra.value).map_err(|error| AccessError::Malformed(error.to_string()))?;
        if let Some(oidc) = &mut this.oidc {
            oidc.take_secret(extras)?;
        }
        this.check().map(|()| Some(this).filter(|this| !this.is_open()))
    }

    fn check(&self) -> Result<(), AccessError> {
        let Self { allow, deny, basic, keys, methods, paths, client_ca, oidc, rate, body } = self;
        let is_too_much = allow.len() + deny.len() > MAX_NETWORKS
            || basic.len().max(keys.len()) > MAX_CREDENTIALS
            || client_ca.len() > MAX_AUTHORITIES
            || methods.len().max(paths.len()) > MAX_PATTERNS;
        if is_too_much {
            return Err(AccessError::TooMuch);
        }
        if *rate == Some(0) || *body == Some(0) {
            return Err(AccessError::Nothing);
        }
        let is_method = |text: &&String| text.len() <= MAX_PATTERN && Method::from_bytes(text.as_bytes()).is_ok();
        if let Some(wrong) = methods.iter().find(|text| !is_method(text)) {
            return Err(AccessError::Method(clip(wrong)));
        }
        paths::check(paths)?;
        if let Some(oidc) = oidc {
            oidc.check()?;
        }
        match keys.iter().find(|key| !can_have_key(&key.header)) {
            Some(wrong) => Err(AccessError::Header(clip(&wrong.header))),
            None => Ok(()),
        }
    }

    /// What a relay says in its Welcome that knows this.
    #[must_use]
    pub const fn known() -> Extra {
        Extra { tag: KNOWN, value: Vec::new() }
    }

    /// Whether the relay knows this, by the extras of its Welcome. One that does not lets everybody in, and does not say so.
    #[must_use]
    pub fn is_known(welcome: &[Extra]) -> bool {
        welcome.iter().any(|extra| extra.tag == KNOWN)
    }

    /// Whether requests may come from there. None: that is not known, and so nowhere where it matters.
    #[must_use]
    pub fn admits_address(&self, address: Option<IpAddr>) -> bool {
        if self.allow.is_empty() && self.deny.is_empty() {
            return true;
        }
        let is_in = |networks: &[Network]| {
            address.is_some_and(|address| networks.iter().any(|network| network.contains(address)))
        };
        address.is_some() && !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }

    /// Whether a credential is asked for.
    #[must_use]
    pub fn asks_for_credentials(&self) -> bool {
        !self.basic.is_empty() || !self.keys.is_empty()
    }

    /// Whether a header line is one of the credentials.
    #[must_use]
    pub fn is_credential(&self, name: &HeaderName, value: &HeaderValue) -> bool {
        let value = value.as_bytes().trim_ascii();
        let behind = |scheme: &str| {
            let (first, rest) = value.split_at_checked(scheme.len())?;
            let rest = rest.strip_prefix(b" ")?;
            first.eq_ignore_ascii_case(scheme.as_bytes()).then(|| rest.trim_ascii())
        };
        let is_authorization = *name == AUTHORIZATION;
        let basic = behind("basic").filter(|_| is_authorization && !self.basic.is_empty());
        let basic = basic.and_then(|text| STANDARD.decode(text).ok()).map(|pair| Digest::of(&pair));
        // Strangers write long lines: each is hashed once, and where a key may be only.
        let mut keys = self.keys.iter().filter(|one| one.header == name.as_str()).peekable();
        let key = if is_authorization { behind("bearer") } else { Some(value) };
        let key = key.filter(|_| keys.peek().is_some()).map(Digest::of);
        basic.is_some_and(|pair| self.basic.iter().any(|one| one.is(&pair)))
            || key.is_some_and(|key| keys.any(|one| one.key.is(&key)))
    }

    /// Whether a method is admitted.
    #[must_use]
    pub fn admits_method(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|one| one == method.as_str())
    }

    /// Whether a path, as it stands in the request and without its query, is admitted. One that leads elsewhere than it
    /// says, for whoever resolves it, is not, nor one of more than 4 KiB.
    #[must_use]
    pub fn admits_path(&self, path: &str) -> bool {
        self.paths.is_empty() || paths::has(&self.paths, path)
    }
}

/// For a person: nothing of credentials but how many there are.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allow, deny, basic, keys, methods, paths, client_ca, oidc, rate, body } = self;
        let networks = |all: &[Network]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let list = |name: &str, text: String| (!text.is_empty()).then(|| format!("{name}={text}"));
        let count = |name: &str, count: usize| (count > 0).then(|| format!("{name}={count}"));
        let words = [
            list("allow", networks(allow)),
            list("deny", networks(deny)),
            count("basic-auth", basic.len()),
            count("api-key", keys.len()),
            count("client-ca", client_ca.len()),
            oidc.as_ref().map(|oidc| format!("oidc={}", oidc.issuer)),
            oidc.as_ref().and_then(|oidc| list("oidc-allow", oidc.allow.join(","))),
            oidc.as_ref().and_then(|oidc| list("oidc-skip", oidc.skip.join(","))),
            list("methods", methods.join(",")),
            list("paths", paths.join(",")),
            rate.map(|rate| format!("rate-limit={rate}")),
            body.map(|body| format!("body-limit={}", sized(body))),
        ];
        f.write_str(&words.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn read(json: &str) -> Result<Option<Access>, AccessError> {
        Access::of(&[Extra { tag: ACCESS, value: json.into() }])
    }

    /// Of an authority that is called `Callers`, in Base64.
    const CA: &str = "MIIBezCCASGgAwIBAgIUeji2JRPMjaF3iRjih8Jtm46REJowCgYIKoZIzj0EAwIwEjEQMA4GA1UEAwwHQ2FsbGVyczAgFw0yNjEx\
        MjIxMTQ2MzNaGA8yMTI2MTAyOTExNDYzM1owEjEQMA4GA1UEAwwHQ2FsbGVyczBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABM/t\
        W0rqYyNvMfsItaKFSdrmQa270jU2+aC+w4RDkHhcdr1PuGYyR+5RWGxbQHC9nbKD6SZe1lwuAHQOf30YOLGjUzBRMB0GA1UdDgQW\
        BBRcQtLsQ2FR6FsFuK2CM7UeiG8WXzAfBgNVHSMEGDAWgBRcQtLsQ2FR6FsFuK2CM7UeiG8WXzAPBgNVHRMBAf8EBTADAQH/MAoG\
        CCqGSM49BAMCA0gAMEUCIEZ+lxJmhktBqbOb8GhJT75OILH9xwlEVY6z1xcMTnwnAiEA6tDM5hbY0AKUXUYrRZeOocGYggKDQRF+\
        pB8zA5A/6/s=";

    fn callers() -> Authority {
        Authority::new(STANDARD.decode(CA).unwrap()).unwrap()
    }

    fn all() -> Access {
        Access {
            allow: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            deny: vec!["10.9.0.0/16".parse().unwrap()],
            basic: vec![Digest::of(b"ann:secret")],
            keys: vec![
                ApiKey { header: "x-api-key".into(), key: Digest::of(b"k1") },
                ApiKey { header: "authorization".into(), key: Digest::of(b"k2") },
            ],
            methods: vec!["POST".into()],
            paths: vec!["/hooks/*".into(), "/health".into()],
            client_ca: vec![callers()],
            oidc: None,
            rate: Some(5),
            body: Some(1024),
        }
    }

    #[test]
    fn what_is_said_is_what_is_read() {
        assert_eq!(Access::of(&all().extras().unwrap()), Ok(Some(all())));
        assert_eq!(Access::default().extras(), Ok(vec![]), "a tunnel for everybody says nothing");
        assert_eq!(Access::of(&[Access::known()]), Ok(None), "another tag");
        assert_eq!(read("{}"), Ok(None));
        assert!(Access::is_known(&[Access::known()]) && !Access::is_known(&[Extra { tag: 1, value: vec![] }]));
    }

    #[test]
    fn a_rule_that_is_not_understood_is_refused() {
        for (json, said) in [
            ("{\"allow\":[\"10.0.0.0/8\"],\"country\":[\"is\"]}", "country"),
            ("{\"keys\":[{\"more\":1}]}", "more"),
            ("{\"keys\":[{\"header\":\"x-k\",\"key\":\"00\"}]}", "64 hexadecimal"),
            ("{\"allow\":[\"10.0.0.0/33\"]}", "10.0.0.0/33"),
            ("{\"methods\":[\"PO ST\"]}", "no method"),
            ("{\"paths\":[\"hooks\"]}", "slash"),
            ("{\"paths\":[\"/hooks?a=1\"]}", "slash"),
            ("{\"client_ca\":[\"AAAA\"]}", "no certificate of an authority"),
            ("{\"client_ca\":[\"*\"]}", "Base64"),
            ("{\"rate\":0}", "at least one"),
            ("{\"body\":0}", "at least one"),
            ("{", "cannot be read"),
            ("[]", "no object"),
        ] {
            let error = read(json).expect_err(json).to_string();
            assert!(error.contains(said), "{json}: {error}");
        }
        let no_places = [
            "X-Upper",
            "host",
            "relay-token",
            "content-length",
            "client-cert",
            "x-real-ip",
            "x-real_ip",
            "x-forwarded-host",
            "keep-alive",
            "proxy-authorization",
            "trailer",
            "cookie",
            "a b",
            "",
        ];
        for header in no_places {
            let keys = vec![ApiKey { header: header.into(), key: Digest::of(b"k") }];
            assert_eq!(Access { keys, ..Access::default() }.extras(), Err(AccessError::Header(header.into())));
        }
        let extra = all().extras().unwrap().remove(0);
        assert!(Access::of(&[extra.clone(), extra]).is_err(), "twice");
        let client_ca = vec![callers(); MAX_AUTHORITIES + 1];
        assert_eq!(Access { client_ca, ..Access::default() }.extras(), Err(AccessError::TooMuch));
        let deny = vec!["10.0.0.1".parse().unwrap(); MAX_NETWORKS + 1];
        assert_eq!(Access { deny, ..Access::default() }.extras(), Err(AccessError::TooMuch));
    }

    #[test]
    fn deny_comes_before_allow_and_what_is_not_known_does_not_come_in() {
        let ip = |text: &str| Some(text.parse().unwrap());
        for (address, is_admitted) in [
            (ip("10.1.2.3"), true),
            (ip("::ffff:10.1.2.3"), true),
            (ip("10.9.1.1"), false),
            (ip("11.0.0.1"), false),
            (ip("2001:db8::1"), true),
            (ip("2001:db9::1"), false),
            (None, false),
        ] {
            assert_eq!(all().admits_address(address), is_admitted, "{address:?}");
        }
        let deny = Access { allow: vec![], ..all() };
        assert!(deny.admits_address(ip("192.0.2.1")) && !deny.admits_address(ip("10.9.0.0")));
        assert!(!deny.admits_address(None));
        assert!(Access::default().admits_address(None));
        assert!(!Access::nobody().admits_address(ip("192.0.2.1")) && !Access::nobody().admits_address(ip("::1")));
    }

    #[test]
    fn credentials_are_known_where_they_belong() {
        let is = |name: &'static str, value: &str| {
            all().is_credential(&HeaderName::from_static(name), &HeaderValue::from_str(value).unwrap())
        };
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert!(is("authorization", &basic("ann:secret")));
        assert!(is("authorization", &basic("ann:secret").replace("Basic", "bAsIc")), "a scheme has no case");
        assert!(!is("authorization", &basic("ann:secre")) && !is("x-api-key", &basic("ann:secret")));
        assert!(!is("authorization", "Basic ***"));
        assert!(is("authorization", "bearer k2") && is("authorization", "Bearer  k2"));
        assert!(!is("authorization", "k2") && !is("authorization", "Bearer k1") && !is("authorization", "Bearerk2"));
        assert!(is("x-api-key", "k1") && !is("x-api-key", "k2") && !is("x-api-key", "") && !is("x-other", "k1"));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_not_admitted() {
        for (path, is_admitted) in [
            ("/hooks/a", true),
            ("/hooks/", true),
            ("/hooks", false),
            ("/health", true),
            ("/health/a", false),
            ("/HEALTH", false),
            ("/hooks/../admin", false),
            ("/hooks/%2e%2E/admin", false),
            ("/hooks/..%2fadmin", false),
            ("/hooks/..\\admin", false),
            ("/hooks/..%5cadmin", false),
            ("/hooks/..;a=1/admin", false),
            ("/hooks/.", false),
            ("/hooks/...", true),
            ("/hooks/a..b", true),
            ("/%68ooks/a", false),
        ] {
            assert_eq!(all().admits_path(path), is_admitted, "{path}");
        }
        assert!(Access::default().admits_path("/a/../b"), "without a rule nothing is looked at");
        let long = |bytes: usize| format!("/hooks/{}", "a".repeat(bytes - "/hooks/".len()));
        assert!(all().admits_path(&long(4096)) && !all().admits_path(&long(4097)), "comparing takes time");
    }

    #[test]
    fn nothing_shows_a_credential() {
        let shown = format!("{all} {all:?}", all = all());
        let hex = Hex(&Digest::of(b"k1").0).to_string();
        assert!(!shown.contains(&hex) && !shown.contains("secret"), "{shown}");
        assert_eq!(
            all().to_string(),
            "allow=10.0.0.0/8,2001:db8::/32 deny=10.9.0.0/16 basic-auth=1 api-key=2 client-ca=1 methods=POST \
             paths=/hooks/*,/health rate-limit=5 body-limit=1KiB"
        );
    }
}
