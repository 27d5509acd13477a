//! Signatures under DNS messages, by a key that both sides know (TSIG, RFC 8945).

use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::ProtoError;
use hickory_proto::op::{Header, Message};
use hickory_proto::rr::rdata::TSIG;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError, make_tsig_record, message_tbs};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder, BinEncoder};

use super::zone::absolute;

/// How many seconds the clocks of both sides may differ, as is usual (RFC 8945, section 10).
pub(super) const FUDGE_S: u16 = 300;

/// A key. What it is made of does not print.
#[derive(Clone, Debug)]
pub(crate) struct TsigKey {
    /// What the other side calls it.
    name: Name,
    algorithm: TsigAlgorithm,
    secret: hmac::Key,
}

/// Why a file has no key.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the key in {}: {reason}; what `tsig-keygen NAME` writes is expected: \
     key \"NAME\" {{ algorithm hmac-sha256; secret \"...\"; }};",
    path.display()
)]
pub struct TsigKeyError {
    path: PathBuf,
    reason: String,
}

impl TsigKey {
    /// Reads a file as BIND has it. Blocks on the file system.
    ///
    /// # Errors
    /// [`TsigKeyError`] says what is wrong with the file.
    pub(crate) fn read(path: &Path) -> Result<Self, TsigKeyError> {
        let error = |reason| TsigKeyError { path: path.to_owned(), reason };
        Self::parse(&fs::read_to_string(path).map_err(|failure| error(failure.to_string()))?).map_err(error)
    }

    /// What both sides call it, as it is written.
    pub(super) fn name(&self) -> String {
        self.name.to_string().trim_end_matches('.').to_owned()
    }

    /// What is wrong with the text is said without it.
    fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with(['#', '/']));
        let words: Vec<_> = lines.flat_map(|line| line.split([' ', '\t', '{', '}', ';', '"'])).collect();
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let (name, algorithm, secret) = match words[..] {
            ["key", name, "algorithm", algorithm, "secret", secret]
            | ["key", name, "secret", secret, "algorithm", algorithm] => (name, algorithm, secret),
            _ => return Err("it is not one key".to_owned()),
        };
        let (algorithm, hash) = match algorithm.to_ascii_lowercase().trim_end_matches('.') {
            "hmac-sha224" => (TsigAlgorithm::HmacSha224, hmac::HMAC_SHA224),
            "hmac-sha256" => (TsigAlgorithm::HmacSha256, hmac::HMAC_SHA256),
            "hmac-sha384" => (TsigAlgorithm::HmacSha384, hmac::HMAC_SHA384),
            "hmac-sha512" => (TsigAlgorithm::HmacSha512, hmac::HMAC_SHA512),
            other => return Err(format!("its algorithm is {other}, and not hmac-sha256, -sha224, -sha384 or -sha512")),
        };
        let name = absolute(name).map_err(|_| "its name is no domain name".to_owned())?;
        let secret = STANDARD.decode(secret).ok().filter(|secret| !secret.is_empty());
        let secret = secret.ok_or("its secret is not in base64")?;
        Ok(Self { name, algorithm, secret: hmac::Key::new(hash, &secret) })
    }

    /// Signs a message at this time (seconds since 1970). What is returned is needed to verify the answer.
    pub(super) fn sign(&self, message: &mut Message, now: u64) -> Result<Vec<u8>, ProtoError> {
        let (algorithm, id) = (self.algorithm.clone(), message.metadata.id);
        let signature = TSIG::new(algorithm, now, FUDGE_S, Vec::new(), id, None, Vec::new());
        let mac = hmac::sign(&self.secret, &message_tbs(message, &signature, &self.name)?).as_ref().to_vec();
        message.signature = Some(Box::new(make_tsig_record(self.name.clone(), signature.set_mac(mac.clone()))));
        Ok(mac)
    }

    /// Whether `answer` is that of somebody who knows the key, to the message that was signed with `mac`.
    pub(super) fn has_signed(&self, answer: &[u8], mac: &[u8], now: u64) -> bool {
        self.verify(answer, mac, now).is_some()
    }

    fn verify(&self, answer: &[u8], mac: &[u8], now: u64) -> Option<()> {
        let mut decoder = BinDecoder::new(answer);
        let Header { metadata, counts } = Header::read(&mut decoder).ok()?;
        let code = metadata.op_code;
        Message::read_queries(&mut decoder, usize::from(counts.queries)).ok()?;
        let others = counts.additionals.checked_sub(1)?;
        for (count, additional) in [(counts.answers, false), (counts.authorities, false), (others, true)] {
            Message::read_records(&mut decoder, usize::from(count), additional, code).ok()?;
        }
        let end = decoder.index();
        let record = Record::<RData>::read(&mut decoder).ok()?;
        let RData::TSIG(signature) = &record.data else { return None };
        // As they have to be (section 4.2); the signature does not cover what is there instead.
        let is_usual = record.dns_class == DNSClass::ANY && record.ttl == 0;
        if !is_usual
            || record.name != self.name
            || signature.algorithm != self.algorithm
            || now.abs_diff(signature.time) > FUDGE_S.into()
        {
            return None;
        }
        // The message as it was before it was signed (RFC 8945, section 4.3.2).
        let mut before = answer.get(..end)?.to_vec();
        before.get_mut(..2)?.copy_from_slice(&signature.oid.to_be_bytes());
        before.get_mut(10..12)?.copy_from_slice(&others.to_be_bytes());
        let mut variables = Vec::new();
        signature.emit_tsig_for_mac(&mut BinEncoder::new(&mut variables), &record.name).ok()?;
        let signed = [&u16::try_from(mac.len()).ok()?.to_be_bytes(), mac, &before, &variables].concat();
        hmac::verify(&self.secret, &signed, &signature.mac).ok()
    }
}

/// What is wrong with the signature under a question, as its answer says.
pub(super) fn error_in(answer: &Message) -> Option<TsigError> {
    answer.additionals.iter().find_map(|record| match &record.data {
        RData::TSIG(signature) => signature.error,
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use hickory_proto::op::{MessageType, OpCode, Query};
    use hickory_proto::rr::RecordType;

    use super::*;

    const FILE: &str = "key \"relay-key\" {\n\talgorithm hmac-sha256;\n\tsecret \"c2VjcmV0//8=\";\n};\n";

    #[test]
    fn keys_are_read_as_they_are_written() {
        let key = TsigKey::parse(FILE).unwrap();
        assert_eq!((key.name.to_ascii().as_str(), &key.algorithm), ("relay-key.", &TsigAlgorithm::HmacSha256));
        let other = "# mine\nkey relay-key { secret \"c2VjcmV0//8=\"; algorithm HMAC-SHA512; };";
        assert_eq!(TsigKey::parse(other).unwrap().algorithm, TsigAlgorithm::HmacSha512);
        for (bad, reason) in [
            ("", "not one key"),
            ("c2VjcmV0", "not one key"),
            (&FILE.repeat(2), "not one key"),
            (&FILE.replace("sha256", "md5"), "its algorithm is hmac-md5"),
            (&FILE.replace("c2VjcmV0//8=", "sesame!"), "not in base64"),
        ] {
            let error = TsigKey::parse(bad).unwrap_err();
            assert!(error.contains(reason) && !error.contains("sesame"), "{error}");
        }
        assert!(!format!("{key:?}").contains("c2Vj"), "{key:?}");
    }

    #[test]
    fn an_answer_is_believed_only_with_its_signature() {
        let key = TsigKey::parse(FILE).unwrap();
        let mut question = Message::new(7, MessageType::Query, OpCode::Update);
        question.add_query(Query::query(absolute("example.com").unwrap(), RecordType::SOA));
        let mac = key.sign(&mut question, 1_000_000).unwrap();
        // Who answers signs over the question's signature and the answer.
        let answer_to = |mac: &[u8], time: u64| {
            let mut answer = Message::response(7, OpCode::Update);
            let signature = TSIG::new(key.algorithm.clone(), time, FUDGE_S, Vec::new(), 7, None, Vec::new());
            let unsigned = message_tbs(&answer, &signature, &key.name).unwrap();
            let signed = [&(mac.len() as u16).to_be_bytes(), mac, &unsigned].concat();
            let own = hmac::sign(&key.secret, &signed).as_ref().to_vec();
            answer.signature = Some(Box::new(make_tsig_record(key.name.clone(), signature.set_mac(own))));
            answer.to_vec().unwrap()
        };
        let good = answer_to(&mac, 1_000_010);
        assert!(key.has_signed(&good, &mac, 1_000_020));
        assert!(!key.has_signed(&good, &mac, 1_001_000), "an old one");
        assert!(!key.has_signed(&answer_to(b"other", 1_000_010), &mac, 1_000_020), "one to another question");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            // Of the id the original one is signed.
            let told = key.has_signed(&bad, &mac, 1_000_020);
            assert!(!told || at < 2, "byte {at} of {}", good.len());
        }
        assert!(!key.has_signed(&Message::response(7, OpCode::Update).to_vec().unwrap(), &mac, 1_000_020), "unsigned");
        let other = TsigKey::parse(&FILE.replace("c2Vj", "d2Vj")).unwrap();
        assert!(!other.has_signed(&good, &mac, 1_000_020), "with another secret");
    }
}
