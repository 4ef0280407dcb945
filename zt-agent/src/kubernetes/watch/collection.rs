// SPDX-License-Identifier: Apache-2.0
//! What is followed.

/// A collection of the API.
#[derive(Clone, Debug)]
pub struct Collection {
    /// What it is called in status and metrics.
    pub name: &'static str,
    /// Its path, such as `/api/v1/pods`.
    pub path: String,
    /// Which of its objects are meant, such as `spec.nodeName=one`.
    pub field_selector: Option<String>,
}

impl Collection {
    pub(super) fn uri(&self, parameters: &str) -> String {
        let mut uri = format!("{}?{parameters}", self.path);
        if let Some(selector) = &self.field_selector {
            uri.push_str("&fieldSelector=");
            uri.push_str(&encoded(selector));
        }
        uri
    }
}

/// A value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                const HEX: [char; 16] = [
                    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
                ];
                out.push('%');
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_one_parameter() {
        let collection = Collection {
            name: "pods",
            path: "/api/v1/pods".to_owned(),
            field_selector: Some("spec.nodeName!=a b&c=ü".to_owned()),
        };
        assert_eq!(
            collection.uri("limit=500"),
            "/api/v1/pods?limit=500&fieldSelector=spec.nodeName%21%3Da%20b%26c%3D%C3%BC"
        );
    }
}
