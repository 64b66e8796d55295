//! Publishers come in here: socket in, frames out to the hub.

pub mod rtmp;
pub mod whip;

use crate::plan::{Arrival, Hold, Plan, Refusal};
use crate::webrtc::Port;

/// Takes a stream for its publisher. A browser that vanished is not known to be dead for seconds, and a page that was reloaded comes
/// back before: a session that has gone silent makes room.
pub async fn claim(plan: &Plan, port: &Port, arrival: Arrival) -> Result<Hold, Refusal> {
    match plan.publish(arrival.clone()).await {
        Err(Refusal::Occupied) if port.replace_silent(&arrival.key).await => plan.publish(arrival).await,
        hold => hold,
    }
}
