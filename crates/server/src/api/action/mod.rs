//! One file an action: its manual page, its parameters, what it does.

mod clear_cdn_transfer_rule;
mod creat_cdn_transfer_rule;
mod delete_cdn_transfer_rule;
mod describe_callbacks;
mod describe_cdn_transfer_rules;
mod describe_rtc_stream_state;
mod describe_streams;
mod forbid_rtc_stream;
mod forbid_rtc_streams;
mod resume_rtc_stream;
mod resume_rtc_streams;
mod retry_callbacks;
mod retry_cdn_transfer_rule;
mod rtmp_dispatch;
mod rtmp_dispatch_v2;

pub use clear_cdn_transfer_rule::ClearCdnTransferRule;
pub use creat_cdn_transfer_rule::CreatCdnTransferRule;
pub use delete_cdn_transfer_rule::DeleteCdnTransferRule;
pub use describe_callbacks::DescribeCallbacks;
pub use describe_cdn_transfer_rules::DescribeCdnTransferRules;
pub use describe_rtc_stream_state::DescribeRtcStreamState;
pub use describe_streams::DescribeStreams;
pub use forbid_rtc_stream::ForbidRtcStream;
pub use forbid_rtc_streams::ForbidRtcStreams;
pub use resume_rtc_stream::ResumeRtcStream;
pub use resume_rtc_streams::ResumeRtcStreams;
pub use retry_callbacks::RetryCallbacks;
pub use retry_cdn_transfer_rule::RetryCdnTransferRule;
pub use rtmp_dispatch::RtmpDispatch;
pub use rtmp_dispatch_v2::RtmpDispatchV2;
