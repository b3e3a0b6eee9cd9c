package buffer

import (
	"errors"
	"fmt"
)

const (
	applicationID = 0x62757367 // "busg"
	schemaVersion = 1
)

// schema has no secondary index, no UNIQUE and no WITHOUT ROWID: each would
// multiply the bytes of a commit. Names map to ids in RAM. In table seg the
// numbers stand before data, so that the scan at Open reads no overflow page.
// No two tables have rows of the same shape: salvage tells them by it.
const schema = `
CREATE TABLE seg(             -- the records of one group commit and lane
  id INTEGER PRIMARY KEY,     -- lane<<56 | first sequence number
  last INTEGER NOT NULL,      -- last sequence number
  n INTEGER NOT NULL,         -- records
  ts_ms INTEGER NOT NULL,     -- newest arrival, UTC; without a clock: minus the time since the kernel started
  boot INTEGER NOT NULL,      -- row of table boot
  raw INTEGER NOT NULL,       -- bytes before deflate
  need BLOB NOT NULL,         -- 1..16 entries (consumer set, n, bytes)
  crc INTEGER NOT NULL,       -- CRC32C of need and data
  data BLOB NOT NULL);
CREATE TABLE consumer(
  slot INTEGER PRIMARY KEY,   -- 0..1023: its bit in the sets
  name TEXT NOT NULL,
  kind INTEGER NOT NULL,
  stream INTEGER NOT NULL,    -- that numbers its records; 0: none
  start INTEGER NOT NULL,     -- records below are not its own
  pos0 INTEGER NOT NULL, pos1 INTEGER NOT NULL, pos2 INTEGER NOT NULL, pos3 INTEGER NOT NULL,
  done BLOB NOT NULL,         -- acknowledged ranges above pos (live first)
  ord INTEGER NOT NULL,       -- deliveries numbered so far
  open BLOB NOT NULL);        -- deliveries that are not finished
CREATE TABLE session(id INTEGER PRIMARY KEY, client TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE subscription(id INTEGER PRIMARY KEY, -- session<<20 | number
  session INTEGER NOT NULL, filter TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE inbound(id INTEGER PRIMARY KEY); -- session<<16 | packet id
CREATE TABLE retained(id INTEGER PRIMARY KEY, topic TEXT NOT NULL, data BLOB NOT NULL, payload BLOB NOT NULL);
CREATE TABLE fact(id INTEGER PRIMARY KEY, key TEXT NOT NULL, at_ms INTEGER NOT NULL, value BLOB NOT NULL); -- oldest first
CREATE TABLE stream(id INTEGER PRIMARY KEY, name TEXT NOT NULL, boot INTEGER NOT NULL, last INTEGER NOT NULL);
CREATE TABLE boot(id INTEGER PRIMARY KEY, label TEXT NOT NULL, kernel TEXT NOT NULL, offset_ms INTEGER NOT NULL, quality INTEGER NOT NULL);
CREATE TABLE loss(id INTEGER PRIMARY KEY, slot INTEGER NOT NULL, stream INTEGER NOT NULL, boot INTEGER NOT NULL,
  lo INTEGER NOT NULL, hi INTEGER NOT NULL, dropped INTEGER NOT NULL, kept INTEGER NOT NULL, bytes INTEGER NOT NULL,
  reason TEXT NOT NULL, told INTEGER NOT NULL);
CREATE TABLE meta(id INTEGER PRIMARY KEY, name TEXT NOT NULL, value ANY NOT NULL);
`

// Rows of table meta.
const (
	metaEpoch = iota + 1
	metaNextSeq
	metaStreamsUpTo
	metaBoot
	metaRescue
)

const (
	sqlInsertSeg  = "REPLACE INTO seg(id,last,n,ts_ms,boot,raw,need,crc,data) VALUES(?,?,?,?,?,?,?,?,?)"
	sqlDeleteSeg  = "DELETE FROM seg WHERE id=?"
	sqlSelectSeg  = "SELECT need,crc,data FROM seg WHERE id=?"
	sqlHeaders    = "SELECT id,last,n,ts_ms,boot,raw,need,length(data) FROM seg ORDER BY id"
	sqlConsumer   = "REPLACE INTO consumer(slot,name,kind,stream,start,pos0,pos1,pos2,pos3,done,ord,open) VALUES(?,?,?,?,?,?,?,?,?,?,?,?)"
	sqlNoConsumer = "DELETE FROM consumer WHERE slot=?"
	sqlMeta       = "REPLACE INTO meta(id,name,value) VALUES(?,?,?)"
	sqlNoMeta     = "DELETE FROM meta WHERE id=?"
	sqlStream     = "REPLACE INTO stream(id,name,boot,last) VALUES(?,?,?,?)"
	sqlBoot       = "REPLACE INTO boot(id,label,kernel,offset_ms,quality) VALUES(?,?,?,?,?)"
	sqlNoBoot     = "DELETE FROM boot WHERE id=?"
	sqlLoss       = "REPLACE INTO loss(id,slot,stream,boot,lo,hi,dropped,kept,bytes,reason,told) VALUES(?,?,?,?,?,?,?,?,?,?,?)"
	sqlSession    = "REPLACE INTO session(id,client,data) VALUES(?,?,?)"
	sqlSubscribe  = "REPLACE INTO subscription(id,session,filter,data) VALUES(?,?,?,?)"
	sqlRetain     = "REPLACE INTO retained(id,topic,data,payload) VALUES(?,?,?,?)"
	sqlFact       = "REPLACE INTO fact(id,key,at_ms,value) VALUES(?,?,?,?)"
	sqlNoLoss     = "DELETE FROM loss WHERE id=?"
)

// versionError says that a newer busgate wrote the file.
type versionError struct{ version int64 }

func (e *versionError) Error() string {
	return fmt.Sprintf("schema version %d is newer than %d", e.version, schemaVersion)
}

// migrate brings an empty or older file to schemaVersion in one transaction.
func (d *db) migrate() error {
	version, err := d.integer("PRAGMA user_version")
	if err != nil {
		return err
	}
	app, err := d.integer("PRAGMA application_id")
	if err != nil {
		return err
	}
	tables, err := d.integer("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return err
	}
	switch {
	case version > schemaVersion && app == applicationID:
		return &versionError{version}
	case version == schemaVersion && app == applicationID:
		return nil
	case version != 0 || app != 0 || tables != 0:
		return fmt.Errorf("%w: it belongs to another application (id %#x)", errDamaged, app)
	}
	return d.transaction(func() error {
		if err := d.run(schema); err != nil {
			return err
		}
		return d.run(fmt.Sprintf("PRAGMA application_id=%d; PRAGMA user_version=%d", applicationID, schemaVersion))
	})
}

// transaction runs fn between BEGIN and COMMIT. After an error nothing of it is kept.
func (d *db) transaction(fn func() error) error {
	if err := d.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := fn()
	if err == nil {
		err = d.exec("COMMIT")
	}
	if err != nil {
		d.run("ROLLBACK") // fails when SQLite has rolled back by itself
	}
	return err
}

// errDamaged marks what only quarantine can mend.
var errDamaged = errors.New("file is damaged")
