//! Where a partition begins or ends, or which record is the first at a time.

use rustmq_protocol::{ListOffsets, ListOffsetsResponse, OffsetAt, PartitionId, RequestKind};

use crate::cluster::{Cluster, Route};
use crate::connection::Lane;
use crate::error::ClientError;

/// Attempts to look up an offset, each with fresh metadata.
const LOOK_UP_ATTEMPTS_MAX: u32 = 5;

/// Looks up an offset at the leader of a partition, again with fresh metadata if that may help.
pub(crate) async fn look_up_offset(
    cluster: &Cluster,
    topic: &str,
    partition: PartitionId,
    at: OffsetAt,
) -> Result<ListOffsetsResponse, ClientError> {
    let mut backoff = cluster.new_backoff();
    let mut stale = None;
    let mut attempt = 1;
    loop {
        let result = match cluster.route(topic, partition, stale).await {
            Ok(route) => {
                stale = Some(route.version);
                look_up_once(cluster, &route, at).await
            }
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.is_retriable() && attempt < LOOK_UP_ATTEMPTS_MAX => {
                tokio::time::sleep(backoff.pause_after(&error)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn look_up_once(
    cluster: &Cluster,
    route: &Route,
    at: OffsetAt,
) -> Result<ListOffsetsResponse, ClientError> {
    let Route { topic, partition, leader_epoch, .. } = *route;
    let mut body = Vec::new();
    ListOffsets { topic, partition, leader_epoch, at }.encode(&mut body);
    let connection = cluster.connection(route).await?;
    let wait = cluster.config().request_timeout;
    let reply = connection
        .request(Lane::Produce(topic, partition), RequestKind::ListOffsets, body, wait)
        .await?;
    Ok(ListOffsetsResponse::decode(&reply.into_body()?)?)
}
