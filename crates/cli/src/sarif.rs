//! SARIF 2.1.0, as far as verdicts need it: what code hosts show as annotations.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use skep::ebpf::program::LineInfo;
use skep::verifier::Reason;

use crate::Failure;
use crate::judge::{Answer, Past};
use crate::marked::expression;

/// Results so far, in the order of the programs.
#[derive(Default)]
pub struct Report {
    results: Vec<(String, Value)>,
    unreadable: Vec<String>,
}

impl Report {
    /// Takes in an answer; accepted programs are not reported.
    pub fn add(&mut self, answer: &Answer) {
        let line = &answer.line;
        let level = match line.verdict {
            "accepted" => return,
            "rejected" => "error",
            _ => "warning",
        };
        let rule = line.reason.unwrap_or("link");
        let mut text = format!("{} is {}: ", line.program, line.verdict);
        text += line.message.as_deref().unwrap_or("no reason is known");
        if let Some(suggestion) = &line.suggestion {
            text += &format!(". {suggestion}");
        }
        let name = json!({
            "name": line.program,
            "fullyQualifiedName": format!("{}:{}", line.object, line.program),
            "kind": "function",
        });
        let physical = match &answer.place {
            Some(place) => physical(place),
            None => json!({ "artifactLocation": { "uri": uri(&line.object) } }),
        };
        let mut result = json!({
            "ruleId": rule,
            "level": level,
            "message": { "text": text },
            "locations": [{ "physicalLocation": physical, "logicalLocations": [name] }],
        });
        let history = line.history.as_deref().unwrap_or_default();
        let related: Vec<Value> = history.iter().filter_map(related).collect();
        if let (false, Some(result)) = (related.is_empty(), result.as_object_mut()) {
            result.insert("relatedLocations".into(), related.into());
        }
        self.results.push((rule.to_owned(), result));
    }

    /// Takes in that an object could not be read.
    pub fn unreadable(&mut self, failure: &Failure) {
        self.unreadable.push(failure.to_string());
    }

    /// The document, with the rules that were broken in order of their names.
    pub fn document(self) -> Value {
        let mut rules: BTreeMap<String, usize> = self.results.iter().map(|(rule, _)| (rule.clone(), 0)).collect();
        rules.values_mut().enumerate().for_each(|(n, index)| *index = n);
        let results = self.results.into_iter().map(|(rule, mut result)| {
            if let (Some(index), Some(result)) = (rules.get(&rule), result.as_object_mut()) {
                result.insert("ruleIndex".into(), (*index).into());
            }
            result
        });
        let results: Vec<Value> = results.collect();
        let rules: Vec<Value> = rules.keys().map(|id| described(id)).collect();
        let notifications = self.unreadable.iter().map(|t| json!({ "level": "error", "message": { "text": t } }));
        let notifications: Vec<Value> = notifications.collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": { "driver": { "name": "skep", "version": env!("CARGO_PKG_VERSION"), "rules": rules } },
                "columnKind": "unicodeCodePoints",
                "invocations": [{
                    "executionSuccessful": notifications.is_empty(),
                    "toolExecutionNotifications": notifications,
                }],
                "results": results,
            }],
        })
    }
}

fn described(id: &str) -> Value {
    let (rule, fix) = match Reason::by_id(id) {
        Some(reason) => (reason.rule(), reason.fix()),
        None => ("The program is whole: what it refers to exists.", "Provide what the message names."),
    };
    json!({ "id": id, "shortDescription": { "text": rule }, "help": { "text": fix } })
}

fn related(step: &Past) -> Option<Value> {
    let place = step.place.as_ref()?;
    Some(json!({ "physicalLocation": physical(place), "message": { "text": step.what } }))
}

/// A place in the C source; lines and columns count from 1.
fn physical(place: &LineInfo) -> Value {
    let span = expression(&place.text, place.column);
    let column = |end: usize| place.text.get(..end).map_or(1, |t| t.chars().count() + 1);
    let mut region = json!({ "startLine": place.line.max(1) });
    if let (false, Some(region)) = (span.is_empty(), region.as_object_mut()) {
        region.insert("startColumn".into(), column(span.start).into());
        region.insert("endColumn".into(), column(span.end).into());
        region.insert("snippet".into(), json!({ "text": &*place.text }));
    }
    json!({ "artifactLocation": { "uri": uri(&place.file) }, "region": region })
}

/// A path as a URI reference.
fn uri(path: &str) -> String {
    let path = path.strip_prefix("./").unwrap_or(path);
    let mut uri = String::from(if path.starts_with('/') { "file://" } else { "" });
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' | b'+' => uri.push(byte.into()),
            _ => uri += &format!("%{byte:02X}"),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_uris() {
        for (path, expected) in [
            ("./a b.c", "a%20b.c"),
            ("/x/ü.c", "file:///x/%C3%BC.c"),
            ("a:b%#?.c", "a%3Ab%25%23%3F.c"),
            ("../x.c", "../x.c"),
        ] {
            assert_eq!(uri(path), expected);
        }
    }
}
