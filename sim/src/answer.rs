//! What a request was told, whichever way it went.

use rustmq_protocol::ErrorCode;
use rustmq_server::reply::Response;

/// An answer.
pub(crate) struct Answer {
    pub(crate) code: ErrorCode,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Of a request that went over the mesh.
    pub(crate) fn of(response: Response) -> Self {
        Self { code: response.status, body: response.to_vec() }
    }
}
