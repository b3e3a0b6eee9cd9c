package buffer

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"

	"modernc.org/sqlite"
)

// Result codes of SQLite that the store tells apart, without their extended part.
const (
	codeBusy     = 5
	codeReadOnly = 8
	codeIO       = 10
	codeCorrupt  = 11
	codeFull     = 13
	codeNotADB   = 26
)

// db is the one connection. It speaks to the driver itself: the pool of
// database/sql could close the connection, which would remove the -wal file
// under our descriptor. Its owner is whoever holds Store.io.
type db struct {
	c     driver.Conn
	stmts map[string]driver.Stmt
	named []driver.NamedValue
	sys   *system
}

// openDB opens path, creating it if create, with the pragmas of the store.
// Pragmas that did not stick are listed in odd.
func openDB(path string, sys *system, full bool) (d *db, odd []string, err error) {
	q := sys.query
	if full {
		q += "&psow=0"
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: "_x=1" + q}
	c, err := new(sqlite.Driver).Open(u.String())
	if err != nil {
		return nil, nil, err
	}
	d = &db{c: c, stmts: map[string]driver.Stmt{}, sys: sys}
	if odd, err = d.pragmas(full); err != nil {
		return nil, nil, errors.Join(err, d.close())
	}
	return d, odd, nil
}

func (d *db) pragmas(full bool) (odd []string, err error) {
	sync := int64(1)
	if full {
		sync = 2
	}
	for _, p := range [...]struct {
		name string
		want any
	}{
		{"page_size", int64(pageSize)}, {"auto_vacuum", int64(0)}, {"journal_mode", "wal"}, {"synchronous", sync},
		{"wal_autocheckpoint", int64(2000)}, {"journal_size_limit", int64(walLimit)}, {"cache_size", int64(-512)}, {"busy_timeout", int64(5000)},
	} {
		if err := d.run(fmt.Sprintf("PRAGMA %s=%v", p.name, p.want)); err != nil {
			return nil, err
		}
		got, err := d.value("PRAGMA " + p.name)
		if err != nil {
			return nil, err
		}
		if got != p.want {
			odd = append(odd, fmt.Sprintf("%s is %v, not %v", p.name, got, p.want))
		}
	}
	_, err = d.c.(sqlite.FileControl).FileControlPersistWAL("main", 1)
	return odd, err
}

// stmt prepares a statement once for the life of the connection.
func (d *db) stmt(query string) (driver.Stmt, error) {
	if st := d.stmts[query]; st != nil {
		return st, nil
	}
	st, err := d.c.Prepare(query)
	if err == nil {
		d.stmts[query] = st
	}
	return st, err
}

// args turns Go values into the driver's. The slice is reused.
func (d *db) args(args []any) []driver.NamedValue {
	d.named = d.named[:0]
	for i, a := range args {
		switch v := a.(type) {
		case int:
			a = int64(v)
		case uint8:
			a = int64(v)
		case uint32:
			a = int64(v)
		case uint64:
			a = int64(v)
		case []byte:
			if v == nil {
				a = []byte{}
			}
		}
		d.named = append(d.named, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return d.named
}

// exec runs a prepared statement without result.
func (d *db) exec(query string, args ...any) error {
	if err := d.sys.exec(query); err != nil {
		return err
	}
	st, err := d.stmt(query)
	if err != nil {
		return err
	}
	_, err = st.(driver.StmtExecContext).ExecContext(context.Background(), d.args(args))
	return err
}

// all runs statements.
func (d *db) all(ops []op) error {
	for _, o := range ops {
		if err := d.exec(o.query, o.args...); err != nil {
			return err
		}
	}
	return nil
}

// run executes statements once, without keeping them prepared.
func (d *db) run(query string) error {
	if err := d.sys.exec(query); err != nil {
		return err
	}
	_, err := d.c.(driver.ExecerContext).ExecContext(context.Background(), query, nil)
	return err
}

// query calls row for each row of the result; the values are the callee's to
// keep. The statement is always finished before query returns: an open one
// would keep the -wal file from shrinking.
func (d *db) query(query string, row func(v []driver.Value) error, args ...any) (err error) {
	if err := d.sys.exec(query); err != nil {
		return err
	}
	st, err := d.stmt(query)
	if err != nil {
		return err
	}
	rows, err := st.(driver.StmtQueryContext).QueryContext(context.Background(), d.args(args))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	v := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(v); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if err := row(v); err != nil {
			return err
		}
	}
}

// value is the first column of the only row; nil without a row.
func (d *db) value(query string, args ...any) (v driver.Value, err error) {
	err = d.query(query, func(row []driver.Value) error { v = row[0]; return nil }, args...)
	return v, err
}

// integer is value for numbers; 0 without a row.
func (d *db) integer(query string, args ...any) (int64, error) {
	v, err := d.value(query, args...)
	n, _ := v.(int64)
	return n, err
}

// emptyWAL brings all that is committed into the database and empties the -wal
// file. A reader beside us keeps it from doing so, which SQLite does not count
// as an error.
func (d *db) emptyWAL() error {
	busy, err := d.integer("PRAGMA wal_checkpoint(TRUNCATE)")
	if err == nil && busy != 0 {
		err = errors.New("another reader keeps the -wal file in use: try again when it is done")
	}
	return err
}

func (d *db) close() error {
	var errs []error
	for _, st := range d.stmts {
		errs = append(errs, st.Close())
	}
	return errors.Join(append(errs, d.c.Close())...)
}

// code is SQLite's primary result code; 0 when err is not SQLite's.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

// Values of a row. Damaged files may hold any type anywhere.

func integer(v driver.Value) int64 { n, _ := v.(int64); return n }
func text(v driver.Value) string   { s, _ := v.(string); return s }
func blob(v driver.Value) []byte   { b, _ := v.([]byte); return b }
