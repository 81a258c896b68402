// The sync loop of docs/reference/protocol.md in Swift: a sketch to start a client of your own from.
// `Store` is your local database; `transaction` must be one transaction there, and `fold` applies
// an event to the local records by the rules of docs/explanation/merge.md. UUIDs are sent in lower case. `erase`
// makes a record a tombstone with that write, and forgets its values wherever you keep them: what
// waits in the queue stays there, with `delete` in the place of its operations on the record.

import Foundation

struct Operation: Codable {
    var op, collection, id: String; var fields: [String: JSONValue]?; var unset: [String]?, erased: String?
}
struct Body: Codable {                                                 // of a record-erased; no other is read
    var collection = "", id = ""
    init(from decoder: Decoder) {
        let at = try? decoder.container(keyedBy: CodingKeys.self)
        collection = (try? at?.decode(String.self, forKey: .collection)) ?? ""
        id = (try? at?.decode(String.self, forKey: .id)) ?? ""
    }
}
struct Changeset: Codable { var id: String; var counter: Int?; var base: Int; var made_at: String; var ops: [Operation] }
struct Refusal: Codable { var code, detail: String }
struct Verdict: Codable { var id, verdict: String; var seq: Int; var duplicate: Bool?; var refusal: Refusal? }
struct Event: Codable {
    var seq: Int, kind, id: String, received_at: String
    var verdict, device: String?, base, time: Int?, ops: [Operation]?
    var erased: [Int]?, body: Body?
}
struct Answer: Codable {
    var log: String, head: Int, verdicts: [Verdict], events: [Event]
    var through: Int, mark: String, more: Bool
}
struct Problem: Codable, Error { var code, detail: String; var index, expected: Int? }
struct Request: Codable {
    var device, sent_at: String, after: Int, mark: String, limit = 500, changesets: [Changeset]
}

func sync(_ store: Store, space: URL) async throws {
    while true {
        let waiting = try store.waiting(limit: 200)                    // oldest first
        let body = Request(device: store.device, sent_at: now(), after: store.after,
                           mark: store.mark, changesets: waiting)
        var request = URLRequest(url: space.appendingPathComponent("sync"))
        request.httpMethod = "POST"
        request.setValue("application/json", forHTTPHeaderField: "Content-Type")
        request.httpBody = try JSONEncoder().encode(body)
        let (data, response) = try await URLSession.shared.data(for: request)  // thrown: try later
        guard (response as? HTTPURLResponse)?.statusCode == 200 else {
            let problem = try JSONDecoder().decode(Problem.self, from: data)
            if try heal(store, problem, waiting) { continue }
            throw problem                                              // the queue is kept
        }
        let answer = try JSONDecoder().decode(Answer.self, from: data)
        try store.transaction {
            for var event in answer.events {
                if event.kind == "record-erased", let record = event.body {
                    try store.erase(record.collection, record.id, by: event)  // write: its seq, no device, received_at, 0
                }
                guard event.kind == "changeset" else { continue }      // skip the kinds you do not know
                let own = try store.queued(event.id)
                if event.ops == nil { event.ops = own?.ops }           // own ones come without them
                event.ops = event.ops?.enumerated()
                    .filter { $1.erased == nil && event.erased?.contains($0) != true }.map(\.element)
                if event.verdict == "stored" {
                    try store.fold(event)
                    if own != nil { try store.leave(event.id, seq: event.seq) }
                }
            }
            for verdict in answer.verdicts where try store.queued(verdict.id) != nil {  // not back yet
                if let refusal = verdict.refusal { try store.refuse(verdict.id, refusal) }
                else if verdict.seq <= answer.through { try store.leave(verdict.id, seq: verdict.seq) }
                else { try store.acknowledge(verdict.id, seq: verdict.seq) }  // leaves when it comes back
            }
            try store.moveCursor(to: answer.through, mark: answer.mark)
        }
        if !answer.more, try store.waiting(limit: 1).isEmpty { return }
    }
}

func heal(_ store: Store, _ problem: Problem, _ waiting: [Changeset]) throws -> Bool {
    switch (problem.code, problem.index) {
    case ("invalid-changeset", let index?), ("limit-exceeded", let index?), ("id-reused", let index?):
        try store.setAside(waiting[index].id, problem)                 // visibly; renumber what follows
    case ("counter-gap", let index?):
        try store.renumber(from: index, expected: problem.expected ?? 1)
    case ("device-forked", _):
        try store.newDevice(UUID().uuidString.lowercased())            // counters from 1; ids stay
    default:
        return false                                                   // log-behind, log-changed: see the page
    }
    return true
}

func now() -> String { ISO8601DateFormatter().string(from: Date()) }
