package bridge

import (
	"encoding/json"
	"fmt"
	"time"
)

const (
	maxIDs     = 1024 // commands whose id is remembered
	maxIDAge   = 24 * time.Hour
	maxIDBytes = 1 << 20 // of their answers
)

// job is one command message: the points it writes, and what they answered.
// Until it is queued it belongs to who received it, then to the lane of its device.
type job struct {
	device   string
	id       string // as the client wrote it; "" = none
	key      string // under which it is remembered; "" = always new
	seq      uint64 // place among the remembered ones
	arrived  time.Duration
	received time.Time     // wall time of it; zero while the clock was not known
	until    time.Duration // on the monotonic clock
	retry    bool          // write again after a crash in the middle
	reply    replyTo
	steps    []step
	left     int  // steps without an answer
	wrote    bool // at least one of them was written
	done     bool // guarded by commands.mu
	size     int  // bytes of its answers once it is done
}

// step is one point of a job.
type step struct {
	point, text string
	place       int // of the point in the file
	digits      int
	refusal     refusal // of a step that never saw the bus
	state       stepState
	ack         []byte
}

type stepState uint8

const (
	stepWaiting stepState = iota
	stepWriting           // on the bus, or was when the process ended
	stepDone
)

// ids remembers the commands that carry an id: a repeated one is answered with
// the first result. The oldest goes after 24 h, when there are more than 1024,
// or when the answers need more than 1 MiB. Its owner guards it.
type ids struct {
	ring      [maxIDs]*job // by seq
	byKey     map[string]*job
	next      uint64 // seq of the next one
	oldest    uint64
	bytes     int
	forgotten uint64 // before their time
}

func newIDs() *ids { return &ids{byKey: map[string]*job{}} }

// find is the job of a key; nil when it is not known or too old. Nothing is known
// by the key "".
func (t *ids) find(key string, now time.Duration) *job {
	for t.oldest < t.next && t.head() == nil || t.head() != nil && now-t.head().arrived > maxIDAge {
		t.drop()
	}
	return t.byKey[key]
}

func (t *ids) head() *job { return t.ring[t.oldest%maxIDs] }

// add remembers a job and gives it its place.
func (t *ids) add(j *job) {
	j.seq = t.next
	t.put(j)
}

// put remembers a job at the place it has: the one of before the restart.
func (t *ids) put(j *job) {
	if j.seq >= t.oldest+maxIDs {
		for t.oldest+maxIDs <= j.seq && t.oldest < t.next {
			if t.head() != nil {
				t.forgotten++
			}
			t.drop()
		}
		t.oldest = max(t.oldest, j.seq-maxIDs+1)
	}
	t.ring[j.seq%maxIDs] = j
	t.byKey[j.key] = j
	t.next = max(t.next, j.seq+1)
}

// others says that the place of a job belongs to a later one by now.
func (t *ids) others(j *job) bool {
	at := t.ring[j.seq%maxIDs]
	return at != nil && at != j
}

// grow counts the answers of a job that is done.
func (t *ids) grow(j *job) {
	if t.byKey[j.key] != j {
		return
	}
	for i := range j.steps {
		j.size += len(j.steps[i].ack)
	}
	t.bytes += j.size
	for t.bytes > maxIDBytes && t.head() != j {
		if t.head() != nil {
			t.forgotten++
		}
		t.drop()
	}
}

// forget takes back a job that was added and not queued.
func (t *ids) forget(j *job) {
	if t.byKey[j.key] == j {
		delete(t.byKey, j.key)
	}
	if t.ring[j.seq%maxIDs] == j {
		t.ring[j.seq%maxIDs] = nil
	}
}

func (t *ids) drop() {
	i := t.oldest % maxIDs
	if j := t.ring[i]; j != nil {
		t.bytes -= j.size
		if t.byKey[j.key] == j {
			delete(t.byKey, j.key)
		}
		t.ring[i] = nil
	}
	t.oldest++
}

// record is a job on disk.
type record struct {
	Key     string       `json:"key"`
	Seq     uint64       `json:"seq"`
	Device  string       `json:"device"`
	ID      string       `json:"id,omitempty"`
	Arrived time.Time    `json:"arrived,omitzero"`
	Until   time.Time    `json:"until,omitzero"`
	Retry   bool         `json:"retry,omitempty"`
	Reply   string       `json:"reply,omitempty"`
	Data    []byte       `json:"data,omitempty"` // correlation data
	Steps   []recordStep `json:"steps"`
}

type recordStep struct {
	Point string    `json:"point"`
	Text  string    `json:"text"`
	State stepState `json:"state"`
	Ack   string    `json:"ack,omitempty"`
}

// slotKey is where a job stands in the Memory: the place is used again 1024
// commands later.
func slotKey(seq uint64) string { return fmt.Sprintf("command/%04d", seq%maxIDs) }

// encode is the record of a job. Moments are kept only when the clock was known
// at its arrival.
func (j *job) encode() []byte {
	r := record{Key: j.key, Seq: j.seq, Device: j.device, ID: j.id, Arrived: j.received, Retry: j.retry,
		Reply: j.reply.topic, Data: j.reply.correlation, Steps: make([]recordStep, len(j.steps))}
	if !j.received.IsZero() {
		r.Until = j.received.Add(j.until - j.arrived)
	}
	for i, s := range j.steps {
		r.Steps[i] = recordStep{Point: s.point, Text: s.text, State: s.state, Ack: string(s.ack)}
	}
	raw, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("bridge: encode command: %v", err)) // strings and numbers only
	}
	return raw
}

// decodeJob reads a record. The monotonic moments are those of this process:
// now less the age. A job of unknown age counts as one that arrived now and has
// run out.
func decodeJob(raw []byte, mono time.Duration, wall time.Time) (*job, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("decode command: %w", err)
	}
	if r.Key == "" || len(r.Steps) == 0 {
		return nil, fmt.Errorf("decode command: %q is incomplete", r.Key)
	}
	j := &job{device: r.Device, id: r.ID, key: r.Key, seq: r.Seq, arrived: mono, until: mono, received: r.Arrived, retry: r.Retry,
		reply: replyTo{topic: r.Reply, correlation: r.Data}}
	if !wall.IsZero() && !r.Arrived.IsZero() {
		j.arrived = mono - max(wall.Sub(r.Arrived), 0)
		j.until = mono + r.Until.Sub(wall)
	}
	for _, s := range r.Steps {
		st := step{point: s.Point, text: s.Text, state: min(s.State, stepDone)}
		if s.Ack != "" {
			st.ack = []byte(s.Ack)
		}
		if st.state != stepDone {
			j.left++
		}
		j.steps = append(j.steps, st)
	}
	return j, nil
}
