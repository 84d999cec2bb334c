"""ROUGH."""
from __future__ import annotations
from psycopg import sql
import datetime as dt
from rowvec.artifacts import read_artifact
def create_staging(connection, table, name, *, direct):
    cols=[]
    for c in table.columns if direct else table.columns[:-2]:
        native=c in table.key or c in table.metadata
        cols.append(sql.SQL('{} {}').format(sql.Identifier(c.name), c.type_sql if direct or not native else sql.SQL(c.travels_as)))
    connection.execute(sql.SQL('DROP TABLE IF EXISTS {}').format(name))
    connection.execute(sql.SQL('CREATE TABLE {} ({})').format(name, sql.SQL(', ').join(cols)))
    connection.execute('create table if not exists rowvec.loaded(run_id bigint, batch int, rows bigint, primary key(run_id,batch))')
def load_batch(connection, run_id, batch, path, table, into, *, direct):
    n=0
    cols=table.columns if direct else table.columns[:-2]
    with connection.transaction():
        with connection.cursor().copy(sql.SQL('COPY {} ({}) FROM STDIN').format(into, sql.SQL(', ').join(sql.Identifier(c.name) for c in cols))) as cp:
            for b in read_artifact(path):
                for r in b.to_pylist():
                    row=[]
                    for c in cols:
                        v=r.get(c.name)
                        if c.name=='embedding': v='['+','.join(map(repr,v))+']'
                        if c.name=='embedding_bits': v=''.join(f'{x:08b}' for x in v)[:table.dimensions]
                        if c.name=='run_id': v=run_id
                        if c.name=='embedded_at': v=dt.datetime.now(dt.timezone.utc)
                        row.append(v)
                    cp.write_row(row); n+=1
    return n
