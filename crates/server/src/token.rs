//! placeholder until merge
use crate::config::App;
pub enum Purpose { Publish, Play }
pub fn verify(_: &App, _: &str, _: &[(String,String)], _: Purpose, _: i64) -> Result<String, String> { Ok(String::new()) }
