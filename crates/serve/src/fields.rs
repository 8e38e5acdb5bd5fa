use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::api_error::ApiError;

/// The fields of a JSON object that have not been read yet. What is left in the end is refused by
/// name, so that no parameter is silently without effect.
pub(crate) struct Fields {
    /// The path of the object in the request, with a dot at its end; empty for the request itself.
    path: String,
    values: Map<String, Value>,
}

impl Fields {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(values)) => Ok(Fields { path: String::new(), values }),
            Ok(other) => {
                let kind = kind(&other);
                Err(ApiError::json(format!("the request body must be a JSON object, not {kind}")))
            }
            Err(error) => Err(ApiError::json(format!("the request body is not JSON: {error}"))),
        }
    }

    /// The fields of an object within the request, for messages known as `path`.
    pub(crate) fn of(path: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(values) => Ok(Fields { path: format!("{path}."), values }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The field's value, which stays unread.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// The field's value; none where it is absent or null.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.values.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        let path = self.path(name);
        self.value(name).ok_or_else(|| {
            ApiError::invalid(&path, format!("{path} is missing")).with_code("missing_parameter")
        })
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(&self.path(name), "true or false", &other)),
        }
    }

    pub(crate) fn integer(
        &mut self,
        name: &str,
        allowed: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let path = self.path(name);
        // Some clients write whole numbers as 16.0.
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 1e15).then_some(number);
        let integer = value.as_i64().or_else(|| Some(whole(value.as_f64()?)? as i64));
        let Some(integer) = integer else { return Err(wrong(&path, "a whole number", &value)) };
        if allowed.contains(&integer) {
            return Ok(Some(integer));
        }
        let (least, most) = allowed.into_inner();
        let allowed = if most == i64::MAX {
            format!("at least {least}")
        } else {
            format!("{least} to {most}")
        };
        Err(ApiError::invalid(&path, format!("{path} is {integer}, allowed is {allowed}")))
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64().map(|number| number as f32)),
            Some(other) => Err(wrong(&self.path(name), "a number", &other)),
        }
    }

    /// A list of strings.
    pub(crate) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let path = self.path(name);
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(wrong(&path, "a list of strings", &other)),
                })
                .collect::<Result<_, _>>()
                .map(Some),
            Some(other) => Err(wrong(&path, "a list of strings", &other)),
        }
    }

    /// Fields that clients send and that change nothing here.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.values.shift_remove(*name);
        }
    }

    /// Fields of OpenAI's API that are not supported, with the values that ask for nothing.
    pub(crate) fn unsupported(&mut self, fields: &[(&str, &[Value])]) -> Result<(), ApiError> {
        for (name, neutral) in fields {
            if let Some(value) = self.value(name)
                && !neutral.contains(&value)
            {
                let path = self.path(name);
                let message = format!("{path} is not supported by this server");
                return Err(ApiError::invalid(path, message).with_code("unsupported_parameter"));
            }
        }
        Ok(())
    }

    /// Refuses the first field that is left.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(name) => {
                let path = self.path(name);
                let message = format!("{path} is not a known field");
                Err(ApiError::invalid(path, message).with_code("unknown_parameter"))
            }
        }
    }
}

pub(crate) fn wrong(path: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    };
    ApiError::invalid(path, format!("{path} must be {expected}, not {found}"))
        .with_code("invalid_type")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
