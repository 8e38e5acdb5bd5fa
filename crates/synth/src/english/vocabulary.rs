//! Word lists.

/// Words after which a full stop does not end a sentence.
#[rustfmt::skip]
pub(super) const ABBREVIATIONS: &[&str] = &[
    "e.g.", "i.e.", "approx.", "no.", "max.", "min.", "fig.", "dr.", "mr.", "ms.", "mrs.", "vs.",
    "incl.", "excl.", "st.", "resp.", "cf.", "ca.", "tel.", "ext.", "art.", "sec.", "par.", "nr.",
];

/// Words that are lower case inside a sentence although they may begin one.
#[rustfmt::skip]
pub(super) const FUNCTION_WORDS: &[&str] = &[
    "the", "a", "an", "if", "when", "all", "every", "each", "no", "any", "this", "these", "in",
    "on", "at", "for", "before", "after", "once", "unless", "until", "while", "as", "to", "from",
    "with", "without", "only", "never", "always", "there", "one", "two", "three", "four", "both",
    "where", "by", "during", "it", "they", "its", "their", "some", "most", "do", "not",
    "whenever", "what", "which", "who", "how", "why",
];

/// Verbs of manuals, procedures and rules (base form; the third person is derived).
#[rustfmt::skip]
pub(super) const VERBS: &[&str] = &[
    "accept", "activate", "add", "adjust", "admit", "affect", "align", "allow", "announce",
    "answer", "apply", "approve", "archive", "arrange", "ask", "assemble", "assign", "attach",
    "attend", "authorise", "authorize", "backflush", "begin", "belong", "bleed", "block", "book",
    "borrow", "bring", "buy", "calculate", "calibrate", "call", "carry", "cause", "change",
    "charge", "check", "choose", "clean", "clear", "close", "coat", "collect", "come", "compare",
    "complete", "confirm", "connect", "contact", "contain", "control", "cool", "cost", "count",
    "cover", "create", "cure", "cut", "decide", "decrease", "define", "degrease", "delete",
    "deliver", "depend", "describe", "detect", "determine", "dip", "disconnect", "dismantle",
    "display", "dispose", "drain", "draw", "drive", "drop", "dry", "earn", "earth", "empty",
    "enable", "end", "enter", "escalate", "escort", "exceed", "expire", "extract", "fail", "feed",
    "feel", "fetch", "file", "fill", "find", "finish", "fit", "flow", "flush", "follow",
    "forward", "get", "give", "glow", "go", "grant", "grease", "grind", "hand", "handle", "hang",
    "hear", "heat", "hoist", "hold", "include", "increase", "indicate", "inform", "insert",
    "inspect", "install", "invite", "isolate", "issue", "keep", "label", "last", "lay", "lead",
    "leave", "let", "lie", "lift", "light", "limit", "list", "load", "lock", "log", "look",
    "lower", "lubricate", "maintain", "make", "manage", "mark", "mean", "measure", "meet", "melt",
    "mix", "monitor", "mount", "move", "need", "note", "notify", "open", "operate", "order",
    "oversee", "own", "pack", "park", "pass", "pay", "perform", "pick", "place", "plan", "pour",
    "prepare", "press", "prevent", "prime", "print", "produce", "protect", "provide", "pull",
    "pump", "purchase", "purge", "push", "put", "raise", "ramp", "reach", "read", "receive",
    "recheck", "record", "reduce", "refer", "refill", "refit", "register", "reject", "release",
    "reload", "remain", "remove", "renew", "repair", "repeat", "replace", "reply", "report",
    "request", "require", "reset", "respond", "restart", "retain", "retest", "return", "review",
    "ring", "rinse", "rotate", "run", "sand", "save", "say", "scan", "schedule", "seal", "secure",
    "see", "sell", "send", "separate", "serve", "set", "shield", "shut", "sign", "signal", "sit",
    "soak", "sound", "speak", "specify", "spin", "spray", "stamp", "stand", "start", "state",
    "stay", "stop", "store", "stow", "strike", "submit", "supervise", "supply", "support",
    "suspend", "swap", "sweep", "switch", "tag", "take", "tell", "test", "throw", "tie",
    "tighten", "top", "torque", "touch", "train", "transfer", "travel", "treat", "trigger",
    "trip", "turn", "undergo", "unlock", "update", "use", "vent", "verify", "wait", "walk",
    "warn", "wash", "watch", "wear", "weigh", "weld", "wipe", "wire", "work", "write",
];

#[rustfmt::skip]
pub(super) const AUXILIARIES: &[&str] = &[
    "is", "are", "was", "were", "must", "shall", "should", "may", "can", "will", "cannot", "has",
    "have",
];

#[rustfmt::skip]
pub(super) const PRONOUNS: &[&str] = &[
    "it", "this", "these", "they", "that", "those", "he", "she", "we", "you", "i", "such", "its",
    "their", "his", "her", "here", "otherwise", "then", "also", "but", "and", "so", "however",
    "instead", "therefore", "both", "neither", "either", "doing",
];

#[rustfmt::skip]
pub(super) const ROLES: &[&str] = &[
    "manager", "lead", "leader", "operator", "technician", "engineer", "supervisor", "officer",
    "team", "department", "staff", "clerk", "driver", "planner", "inspector", "coordinator",
    "head", "foreman", "buyer", "employee", "employees", "visitor", "visitors", "customer",
    "customers", "contractor", "contractors", "desk", "mechanic", "electrician", "director",
    "dispatcher", "accountant", "controller", "analyst", "scientist", "chemist", "nurse",
    "assistant", "administrator", "representative", "member", "members", "person", "people",
    "office", "committee", "board", "secretary", "auditor", "welder", "apprentice", "guard",
    "warden", "aider", "marshal", "owner", "reception", "receptionist", "shift", "crew", "agent",
    "keeper", "storekeeper", "laboratory", "lab", "group", "hand", "setter", "fitter", "painter",
    "tester", "metallurgist", "packer", "buyer", "user", "purser", "rigger", "turner",
];
