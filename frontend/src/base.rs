//! What stands before the names of a decoder's tensors, which builders ask for as the decoder's class alone has them:
//! in checkpoints of a model without its head, and of models of several parts, something else.

use crate::safetensors::SafetensorsSet;
use std::borrow::Cow;

/// What stands before the names of a decoder's tensors that are no head's.
const BASE: &str = "model.";

/// What stands before a decoder's tensor names in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// `model.`, but for a head's.
    Model,
    /// Nothing: the model was saved without its head.
    Nothing,
    /// In a model of several parts, `language_model.` before all of them.
    Part,
    /// In such a model as newer classes save it, `model.language_model.` for `model.`.
    InnerPart,
}

impl Base {
    /// That of a set of files.
    pub(crate) fn of(set: &SafetensorsSet) -> Base {
        let any = |prefix: &str| set.tensors().any(|t| t.name.starts_with(prefix));
        match () {
            () if any("language_model.model.") => Base::Part,
            () if any("model.language_model.") => Base::InnerPart,
            () if any(BASE) => Base::Model,
            () => Base::Nothing,
        }
    }

    /// A Hugging Face name of the decoder alone, as it stands in the file.
    pub(crate) fn place(self, name: &str) -> Cow<'_, str> {
        let inner = name.strip_prefix(BASE);
        match (self, inner) {
            (Base::Model, _) | (Base::InnerPart, None) => name.into(),
            (Base::Nothing, _) => inner.unwrap_or(name).into(),
            (Base::Part, _) => format!("language_model.{name}").into(),
            (Base::InnerPart, Some(inner)) => format!("{BASE}language_model.{inner}").into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Base;

    #[test]
    fn names_are_put_in_their_place() {
        let [norm, head] = ["model.norm.weight", "lm_head.weight"];
        for (base, places) in [
            (Base::Model, [norm, head]),
            (Base::Nothing, ["norm.weight", head]),
            (Base::Part, ["language_model.model.norm.weight", "language_model.lm_head.weight"]),
            (Base::InnerPart, ["model.language_model.norm.weight", head]),
        ] {
            assert_eq!([norm, head].map(|name| base.place(name)), places, "{base:?}");
        }
    }
}
