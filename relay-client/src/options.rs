//! What a tunnel is to be.

use std::time::Duration;

use relay_protocol::access::Access;
use relay_protocol::inbox::Inbox;

use crate::intake::faults::Faults;
use crate::intake::routes::Route;
use crate::upstream::rewrite::HostHeader;
use crate::upstream::service::Destination;
use crate::value::UpstreamProtocol;
use crate::webhooks::WebhookOptions;

/// One tunnel's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct TunnelOptions {
    /// What the tunnel is called on this machine, which tells it from the client's others. A random name is remembered for
    /// it. `None` for the only one.
    pub label: Option<String>,
    /// Where requests go.
    pub upstream: Destination,
    /// The name asked for; `None` for a random one.
    pub subdomain: Option<String>,
    /// A domain of one's own that is asked for in its place.
    pub domain: Option<String>,
    /// The deadline of response heads; `None` for the relay's choice.
    pub timeout: Option<Duration>,
    /// What the service sees as its name.
    pub host_header: HostHeader,
    /// How the service is spoken to.
    pub protocol: UpstreamProtocol,
    /// What is known of its webhooks, and what is done about them.
    pub webhooks: WebhookOptions,
    /// Which requests go elsewhere; the first that fits holds.
    pub routes: Vec<Route>,
    /// What goes wrong on purpose.
    pub faults: Faults,
    /// How the relay keeps its webhooks until they are delivered; none where it does not.
    pub inbox: Option<Inbox>,
    /// Who may call it.
    pub access: Access,
    /// Take the name over from a live session of the same token.
    pub takeover: bool,
    /// Where the tunnel also answers on this machine, for [`Event::Ready`](crate::Event::Ready).
    pub local_url: Option<String>,
}

impl TunnelOptions {
    /// A tunnel with a random name, and otherwise the defaults of `relay http`.
    pub fn new(upstream: impl Into<Destination>) -> Self {
        Self {
            label: None,
            upstream: upstream.into(),
            subdomain: None,
            domain: None,
            timeout: None,
            host_header: HostHeader::default(),
            protocol: UpstreamProtocol::default(),
            webhooks: WebhookOptions::default(),
            routes: Vec::new(),
            faults: Faults::default(),
            inbox: None,
            access: Access::default(),
            takeover: false,
            local_url: None,
        }
    }

    /// Whether the same name is asked for.
    pub(crate) fn has_same_name_as(&self, other: &Self) -> bool {
        (&self.subdomain, &self.domain) == (&other.subdomain, &other.domain)
    }

    /// Asks for a name.
    #[must_use]
    pub fn subdomain(mut self, name: impl Into<String>) -> Self {
        self.subdomain = Some(name.into());
        self
    }

    /// Says what was said of this tunnel where it may be one of several.
    pub(crate) fn of_it(&self, text: &str) -> String {
        self.label.as_ref().map_or_else(|| text.to_owned(), |label| format!("{label}: {text}"))
    }
}
