//! Connection ids that say which shard they belong to.

use std::hash::Hasher;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rustmq_protocol::ShardId;
use rustmq_sys::random::fill_random;

/// Bytes of a connection id: 1 that tells the shard, 4 random, 3 that only we can make.
pub const CONNECTION_ID_BYTES: u8 = 8;

const BYTES: usize = CONNECTION_ID_BYTES as usize;
const TAGGED_BYTES: usize = 5;

/// Makes the connection ids of one shard.
///
/// The first byte is the shard's number modulo the number of shards, so a program in front of the
/// sockets can steer by it, and a shard that got a datagram of another's knows whose it is. The last three are a keyed hash of the others: a datagram for an id that
/// this broker never gave out is dropped in a tenth of a microsecond. The key outlives a restart, so
/// peers of the process before are recognised and told that their connection is gone.
pub(crate) struct ShardConnectionIds {
    key: u64,
    shard: u8,
    shards: u8,
}

impl ShardConnectionIds {
    /// The generator of `shard` among `shards`.
    pub(crate) fn new(key: u64, shard: ShardId, shards: u16) -> Self {
        let byte = |number: u16| u8::try_from(number).expect("a broker has at most 64 shards");
        Self { key, shard: byte(shard.0), shards: byte(shards) }
    }

    /// Does this datagram have a long header and a destination that we never gave out, as the first
    /// of a connection has? (RFC 8999, section 5.1.)
    pub(crate) fn is_stranger(&self, datagram: &[u8]) -> bool {
        let [first, _, _, _, _, id_bytes, rest @ ..] = datagram else { return false };
        let is_long = first & 0x80 != 0;
        is_long && rest.get(..usize::from(*id_bytes)).is_none_or(|id| !self.is_ours(id))
    }

    /// Which other shard gave out the id that this datagram is sent to, if one did. The keyed hash is
    /// only taken of what is in the wrong place; for the rest this is a look at three bytes.
    pub(crate) fn other_owner(&self, datagram: &[u8]) -> Option<ShardId> {
        let id: &[u8; BYTES] = match datagram {
            [first, rest @ ..] if first & 0x80 == 0 => rest.first_chunk()?,
            [_, _, _, _, _, CONNECTION_ID_BYTES, rest @ ..] => rest.first_chunk()?,
            _ => return None,
        };
        let owner = id[0] % self.shards;
        (owner != self.shard && self.is_ours(id)).then_some(ShardId(u16::from(owner)))
    }

    fn is_ours(&self, id: &[u8]) -> bool {
        let Some((bytes, tag)) = id.split_at_checked(TAGGED_BYTES) else { return false };
        self.tag(bytes).as_slice() == tag
    }

    #[expect(deprecated, reason = "std's keyed SipHash: enough to tell strangers, nothing more")]
    fn tag(&self, bytes: &[u8]) -> [u8; BYTES - TAGGED_BYTES] {
        let mut hasher = std::hash::SipHasher::new_with_keys(self.key, !self.key);
        hasher.write(bytes);
        let [a, b, c, ..] = hasher.finish().to_le_bytes();
        [a, b, c]
    }
}

impl ConnectionIdGenerator for ShardConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; BYTES];
        fill_random(&mut id[..TAGGED_BYTES]).expect("the system has random numbers");
        // Any value that leaves the shard's number when divided by the number of shards.
        let groups = 256 / u16::from(self.shards);
        let group = u16::from(id[0]) % groups;
        id[0] = (group * u16::from(self.shards)) as u8 + self.shard;
        let tag = self.tag(&id[..TAGGED_BYTES]);
        id[TAGGED_BYTES..].copy_from_slice(&tag);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match self.is_ours(id) {
            true => Ok(()),
            false => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_packet_is_told_from_one_for_a_connection_of_ours() {
        let mut ids = ShardConnectionIds::new(7, ShardId(0), 1);
        let id = ids.generate_cid();
        let long = |id: &[u8]| [&[0xc3, 0, 0, 0, 1, id.len() as u8], id, &[0; 20]].concat();
        assert!(!ids.is_stranger(&long(&id)));
        assert!(ids.is_stranger(&long(&[9; 8])));
        assert!(ids.is_stranger(&long(&[9; 20])));
        assert!(ids.is_stranger(&long(&[])));
        assert!(!ids.is_stranger(&[0x43; 30]), "a short header");
        assert!(!ids.is_stranger(&[0xc3, 0, 0]), "no header at all");
    }

    #[test]
    fn a_datagram_in_the_wrong_place_names_its_shard_and_noise_does_not() {
        let short = |id: &[u8]| [&[0x43], id, &[0; 20]].concat();
        let long = |id: &[u8]| [&[0xc3, 0, 0, 0, 1, id.len() as u8], id, &[0; 20]].concat();
        let ids = |shard| ShardConnectionIds::new(7, ShardId(shard), 3);
        for owner in 0..3 {
            let id = ids(owner).generate_cid();
            for here in 0..3 {
                let other = (here != owner).then_some(ShardId(owner));
                assert_eq!(ids(here).other_owner(&short(&id)), other);
                assert_eq!(ids(here).other_owner(&long(&id)), other);
            }
            let mut forged = *id.first_chunk::<BYTES>().unwrap();
            forged[BYTES - 1] ^= 1;
            let longer = [&id[..], &[0]].concat();
            for here in 0..3 {
                assert_eq!(ids(here).other_owner(&short(&forged)), None);
                assert_eq!(ids(here).other_owner(&long(&forged)), None);
                assert_eq!(ids(here).other_owner(&long(&longer)), None, "an id of another length");
                assert_eq!(ids(here).other_owner(&short(&id)[..BYTES]), None, "cut");
                assert_eq!(ids(here).other_owner(&[]), None);
            }
        }
    }

    #[test]
    fn an_id_names_its_shard_and_validates_with_the_same_key_only() {
        let mut passed_by_chance = 0;
        for shards in [1, 2, 3, 7, 64] {
            for shard in 0..shards {
                let mut ids = ShardConnectionIds::new(7, ShardId(shard), shards);
                let other = ShardConnectionIds::new(8, ShardId(shard), shards);
                for _ in 0..100 {
                    let id = ids.generate_cid();
                    assert_eq!(u16::from(id[0]) % shards, shard);
                    assert!(ids.validate(&id).is_ok());
                    passed_by_chance += u32::from(other.validate(&id).is_ok());
                }
            }
        }
        // One id in 16 million has the same three bytes under both keys: of these 7,700, one is
        // among them in one run of 2,200, and three in one run of 60 thousand million.
        assert!(passed_by_chance < 3, "{passed_by_chance} ids passed with another key");
    }
}
