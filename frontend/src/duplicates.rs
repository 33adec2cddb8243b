//! Keys that a JSON object gives twice: readers keep the last and say nothing.

use std::collections::BTreeSet;
use std::fmt;

/// The first key that the object gives twice; `None` also for what is no object.
pub(crate) fn first(text: &[u8]) -> Option<String> {
    struct Keys;
    impl<'de> serde::de::Visitor<'de> for Keys {
        type Value = Option<String>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = BTreeSet::new();
            let mut twice = None;
            while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                if twice.is_none()
                    && let Some(known) = seen.replace(key)
                {
                    twice = Some(known);
                }
            }
            Ok(twice)
        }
    }
    serde::Deserializer::deserialize_map(&mut serde_json::Deserializer::from_slice(text), Keys).ok()?
}
